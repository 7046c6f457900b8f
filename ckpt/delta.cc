// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Each path goes over the page twice: first it compares everything without a branch, then it packs the lines
// that differ, which are in the first cache by then. Base and page are read from memory once.
#include "ckpt/delta.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <array>
#include <bit>
#include <cstring>
#include <vector>

namespace remusd::ckpt {
namespace {

constexpr size_t kWordBytes = 8;
constexpr size_t kLineWords = kDeltaLineBytes / kWordBytes;
constexpr size_t kHeadBytes = 8;  // the line mask
static_assert(kDeltaLines == 64 && kLineWords == 8, "masks of 64 and 8 bits");

/// Bit w of of_line[l]: word w of line l differs.
struct WordMasks {
  std::array<uint8_t, kDeltaLines> of_line;
};

uint64_t load_word(const std::byte* at) {
  uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  return word;
}

inline size_t count_words(const WordMasks& masks) {
  size_t words = 0;
  for (size_t line = 0; line < kDeltaLines; line += 8)
    words += static_cast<size_t>(
        std::popcount(load_word(reinterpret_cast<const std::byte*>(&masks.of_line[line]))));
  return words;
}

inline size_t delta_bytes(uint64_t lines, const WordMasks& masks) {
  return kHeadBytes + static_cast<size_t>(std::popcount(lines)) + kWordBytes * count_words(masks);
}

/// Packs word by word: for paths without an instruction that gathers the words of a line.
inline void pack_words(uint64_t lines, const WordMasks& masks, std::byte* base, const std::byte* page,
                       std::byte* out) {
  std::memcpy(out, &lines, sizeof lines);
  std::byte* mask_out = out + kHeadBytes;
  std::byte* word_out = mask_out + std::popcount(lines);
  for (uint64_t rest = lines; rest != 0; rest &= rest - 1) {
    const auto line = static_cast<size_t>(std::countr_zero(rest));
    std::byte* was = base + line * kDeltaLineBytes;
    const std::byte* is = page + line * kDeltaLineBytes;
    *mask_out++ = std::byte{masks.of_line[line]};
    for (unsigned words = masks.of_line[line]; words != 0; words &= words - 1) {
      const auto at = static_cast<size_t>(std::countr_zero(words)) * kWordBytes;
      const uint64_t difference = load_word(was + at) ^ load_word(is + at);
      std::memcpy(word_out, &difference, sizeof difference);
      word_out += kWordBytes;
    }
    std::memcpy(was, is, kDeltaLineBytes);
  }
}

size_t encode_portable(std::byte* base, const std::byte* page, size_t most, std::byte* out) {
  WordMasks masks;
  uint64_t lines = 0;
  for (size_t line = 0; line < kDeltaLines; ++line) {
    const std::byte* was = base + line * kDeltaLineBytes;
    const std::byte* is = page + line * kDeltaLineBytes;
    unsigned mask = 0;
    for (size_t word = 0; word < kLineWords; ++word)
      mask |= static_cast<unsigned>(load_word(was + word * kWordBytes) != load_word(is + word * kWordBytes))
              << word;
    masks.of_line[line] = static_cast<uint8_t>(mask);
    lines |= static_cast<uint64_t>(mask != 0) << line;
  }
  if (lines == 0) return 0;
  const size_t bytes = delta_bytes(lines, masks);
  if (bytes > most) {
    std::memcpy(base, page, kPageSize);
  } else {
    pack_words(lines, masks, base, page, out);
  }
  return bytes;
}

void apply_portable(const std::byte* delta, std::byte* page) {
  const uint64_t lines = load_word(delta);
  const std::byte* mask_in = delta + kHeadBytes;
  const std::byte* word_in = mask_in + std::popcount(lines);
  for (uint64_t rest = lines; rest != 0; rest &= rest - 1) {
    std::byte* line = page + static_cast<size_t>(std::countr_zero(rest)) * kDeltaLineBytes;
    for (auto words = std::to_integer<unsigned>(*mask_in++); words != 0; words &= words - 1) {
      std::byte* at = line + static_cast<size_t>(std::countr_zero(words)) * kWordBytes;
      const uint64_t changed = load_word(at) ^ load_word(word_in);
      std::memcpy(at, &changed, sizeof changed);
      word_in += kWordBytes;
    }
  }
}

#if defined(__x86_64__)

__attribute__((target("avx2,bmi,popcnt"))) size_t encode_avx2(std::byte* base, const std::byte* page,
                                                              size_t most, std::byte* out) {
  constexpr size_t kHalf = kDeltaLineBytes / 2;
  WordMasks masks;
  uint64_t lines = 0;
  for (size_t line = 0; line < kDeltaLines; ++line) {
    const auto* was = reinterpret_cast<const __m256i*>(base + line * kDeltaLineBytes);
    const auto* is = reinterpret_cast<const __m256i*>(page + line * kDeltaLineBytes);
    static_assert(sizeof *was == kHalf);
    const __m256i low = _mm256_cmpeq_epi64(_mm256_loadu_si256(was), _mm256_loadu_si256(is));
    const __m256i high = _mm256_cmpeq_epi64(_mm256_loadu_si256(was + 1), _mm256_loadu_si256(is + 1));
    const auto same = static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(low))) |
                      static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(high))) << 4;
    masks.of_line[line] = static_cast<uint8_t>(~same);
    lines |= static_cast<uint64_t>(same != 0xff) << line;
  }
  if (lines == 0) return 0;
  const size_t bytes = delta_bytes(lines, masks);
  if (bytes > most) {
    std::memcpy(base, page, kPageSize);
  } else {
    pack_words(lines, masks, base, page, out);
  }
  return bytes;
}

#define REMUSD_AVX512 __attribute__((target("avx512f,bmi,popcnt")))

REMUSD_AVX512 size_t encode_avx512(std::byte* base, const std::byte* page, size_t most, std::byte* out) {
  WordMasks masks;
  uint64_t lines = 0;
  for (size_t line = 0; line < kDeltaLines; ++line) {
    const __mmask8 mask = _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(base + line * kDeltaLineBytes),
                                                   _mm512_loadu_si512(page + line * kDeltaLineBytes));
    masks.of_line[line] = mask;
    lines |= static_cast<uint64_t>(mask != 0) << line;
  }
  if (lines == 0) return 0;
  const size_t bytes = delta_bytes(lines, masks);
  if (bytes > most) {
    std::memcpy(base, page, kPageSize);
    return bytes;
  }
  std::memcpy(out, &lines, sizeof lines);
  std::byte* mask_out = out + kHeadBytes;
  std::byte* word_out = mask_out + std::popcount(lines);
  for (uint64_t rest = lines; rest != 0; rest &= rest - 1) {
    const auto line = static_cast<size_t>(std::countr_zero(rest));
    std::byte* was = base + line * kDeltaLineBytes;
    const uint8_t mask = masks.of_line[line];
    const __m512i is = _mm512_loadu_si512(page + line * kDeltaLineBytes);
    const __m512i difference = _mm512_xor_si512(_mm512_loadu_si512(was), is);
    *mask_out++ = std::byte{mask};
    // To a register and out from there: storing while compressing is slow on some processors.
    _mm512_storeu_si512(word_out, _mm512_maskz_compress_epi64(mask, difference));
    _mm512_storeu_si512(was, is);
    word_out += kWordBytes * static_cast<size_t>(std::popcount(mask));
  }
  return bytes;
}

REMUSD_AVX512 void apply_avx512(const std::byte* delta, std::byte* page) {
  const uint64_t lines = load_word(delta);
  const std::byte* mask_in = delta + kHeadBytes;
  const std::byte* word_in = mask_in + std::popcount(lines);
  for (uint64_t rest = lines; rest != 0; rest &= rest - 1) {
    std::byte* line = page + static_cast<size_t>(std::countr_zero(rest)) * kDeltaLineBytes;
    const auto mask = std::to_integer<uint8_t>(*mask_in++);
    // Reads the words that the mask counts and no byte more.
    const __m512i difference = _mm512_maskz_expandloadu_epi64(mask, word_in);
    _mm512_storeu_si512(line, _mm512_xor_si512(_mm512_loadu_si512(line), difference));
    word_in += kWordBytes * static_cast<size_t>(std::popcount(mask));
  }
}

#undef REMUSD_AVX512

#endif

std::vector<DeltaPath> find_paths() {
  std::vector<DeltaPath> paths;
#if defined(__x86_64__)
  const bool bits = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt");
  if (bits && __builtin_cpu_supports("avx512f")) paths.push_back({"avx512", encode_avx512, apply_avx512});
  if (bits && __builtin_cpu_supports("avx2")) paths.push_back({"avx2", encode_avx2, apply_portable});
#endif
  paths.push_back({"portable", encode_portable, apply_portable});
  return paths;
}

}  // namespace

std::span<const DeltaPath> delta_paths() {
  static const std::vector<DeltaPath> kPaths = find_paths();
  return kPaths;
}

bool check_delta(std::span<const std::byte> delta) {
  if (delta.size() < kMinDeltaBytes) return false;
  const uint64_t lines = load_word(delta.data());
  const auto line_count = static_cast<size_t>(std::popcount(lines));
  if (line_count == 0 || delta.size() < kHeadBytes + line_count) return false;
  size_t words = 0;
  bool whole = true;
  for (const std::byte mask : delta.subspan(kHeadBytes, line_count)) {
    whole = whole && mask != std::byte{0};
    words += static_cast<size_t>(std::popcount(std::to_integer<unsigned>(mask)));
  }
  return whole && delta.size() == kHeadBytes + line_count + kWordBytes * words;
}

}  // namespace remusd::ckpt
