// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A PAGES body: u32 count, u32 0, `count` entries of 16 bytes, then the payloads in the same order.
#include "ckpt/page_codec.h"

#include <lz4.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "ckpt/delta.h"
#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

constexpr size_t kCountBytes = 8;

Status bad_pages(const std::string& why) {
  return {Code::corrupt, "PAGES record: " + why};
}

constexpr const char* kNotAPage = "does not decompress to one page";
constexpr const char* kNotADelta = "does not hold one delta";
Status bad_pages(const char* why, uint64_t page) {
  return bad_pages("page " + std::to_string(page) + " " + why);
}

/// The C library compares with the widest loads that this processor has, and stops at the first difference.
bool is_zero(const std::byte* page) {
  return page[0] == std::byte{0} && std::memcmp(page, page + 1, kPageSize - 1) == 0;
}

PageEntry entry_at(View body, size_t index) {
  PageEntry entry;
  std::memcpy(&entry, body.data() + kCountBytes + index * sizeof entry, sizeof entry);
  return entry;
}

uint32_t count_of(View body) {
  uint32_t count = 0;
  if (body.size() >= kCountBytes) std::memcpy(&count, body.data(), sizeof count);
  return count;
}

/// The size of what was decompressed, at most `room` bytes; negative when it is no lz4 block, or larger.
int decompress(View payload, std::byte* out, size_t room) {
  return LZ4_decompress_safe(reinterpret_cast<const char*>(payload.data()), reinterpret_cast<char*>(out),
                             static_cast<int>(payload.size()), static_cast<int>(room));
}

/// The size of the lz4 block, 0 when it would be larger than `most`.
size_t compress(View plain, size_t most, std::byte* out) {
  return static_cast<size_t>(LZ4_compress_default(reinterpret_cast<const char*>(plain.data()),
                                                  reinterpret_cast<char*>(out),
                                                  static_cast<int>(plain.size()), static_cast<int>(most)));
}

/// The delta of a payload, checked; empty when it is none. What was compressed is put into `scratch`, of
/// kMaxDeltaBytes.
View delta_of(PageEncoding encoding, View payload, std::byte* scratch) {
  View delta = payload;
  if (encoding == PageEncoding::delta_lz4) {
    const int size = decompress(payload, scratch, kMaxDeltaBytes);
    delta = {scratch, static_cast<size_t>(std::max(size, 0))};
  }
  return check_delta(delta) ? delta : View();
}

/// True when count, table and payloads lie inside the body: what the decoders need so as not to read past it.
bool fits(View body, uint32_t count) {
  if (count == 0 || count > kMaxPagesPerFrame) return false;
  if (body.size() < kCountBytes + count * sizeof(PageEntry)) return false;
  uint64_t payload_bytes = 0;
  for (uint32_t i = 0; i < count; ++i) payload_bytes += entry_at(body, i).payload_bytes;
  return payload_bytes == body.size() - kCountBytes - count * sizeof(PageEntry);
}

// Below this lz4 costs more time than the bytes are worth.
constexpr size_t kCompressDeltaFrom = 256;
// A delta above this may well be larger than the page in lz4: that is tried instead of lz4 on the delta.
constexpr size_t kSparseBytes = kPageSize / 2;

struct Scratch {
  std::array<std::byte, kDeltaRoomBytes> delta;
  std::array<std::byte, kPageSize> packed;
};

struct Choice {
  PageEncoding encoding = PageEncoding::zero;
  View payload;  // in the page itself or in the scratch
};

/// Zero, lz4 or raw.
Choice encode_whole(const std::byte* page, Scratch* scratch) {
  if (is_zero(page)) return {};
  if (const size_t size = compress({page, kPageSize}, kPageSize - 1, scratch->packed.data()); size > 0)
    return {PageEncoding::lz4, std::span(scratch->packed).first(size)};
  return {PageEncoding::raw, {page, kPageSize}};
}

/// A page whose delta against what the backup has takes `size` bytes, in the scratch where that is less than
/// a page. lz4 runs once at most.
Choice encode_changed(const std::byte* page, size_t size, Scratch* scratch) {
  if (size >= kPageSize) return encode_whole(page, scratch);
  const Choice delta{PageEncoding::delta, std::span(scratch->delta).first(size)};
  if (size < kCompressDeltaFrom) return delta;
  if (is_zero(page)) return {};
  std::byte* packed = scratch->packed.data();
  if (size > kSparseBytes) {
    const size_t whole = compress({page, kPageSize}, size - 1, packed);
    return whole > 0 ? Choice{PageEncoding::lz4, {packed, whole}} : delta;
  }
  // The receiver has to unpack it: for an eighth and more.
  const size_t less = compress(delta.payload, size - size / 8, packed);
  return less > 0 ? Choice{PageEncoding::delta_lz4, {packed, less}} : delta;
}

void count(PageEncoding encoding, PageCounts* counts) {
  switch (encoding) {
    case PageEncoding::zero:
      ++counts->zero;
      break;
    case PageEncoding::raw:
      ++counts->raw;
      break;
    case PageEncoding::lz4:
      ++counts->lz4;
      break;
    case PageEncoding::delta:
      ++counts->delta;
      break;
    case PageEncoding::delta_lz4:
      ++counts->delta_lz4;
      break;
  }
}

}  // namespace

PageCounts encode_pages(std::span<const uint64_t> pages, std::span<const std::byte> data, Bytes* out,
                        Shadow* shadow, bool keep_new) {
  REMUSD_ASSERT(!pages.empty() && pages.size() <= kMaxPagesPerFrame, "the caller cuts page sets into frames");
  REMUSD_ASSERT(data.size() == pages.size() * kPageSize, "one page of data for each number");
  const size_t start = out->size();
  const size_t table = start + kCountBytes;
  const size_t worst = table + pages.size() * (sizeof(PageEntry) + kPageSize);
  if (out->capacity() < worst) out->reserve(std::max(worst, 2 * out->capacity()));
  put(static_cast<uint32_t>(pages.size()), out);
  put(uint32_t{0}, out);
  out->resize(table + pages.size() * sizeof(PageEntry));

  PageCounts counts;
  Scratch scratch;
  size_t entries = 0;
  for (size_t i = 0; i < pages.size(); ++i) {
    const std::byte* page = data.data() + i * kPageSize;
    Choice choice;
    if (std::byte* known = shadow != nullptr ? shadow->find(pages[i]) : nullptr; known != nullptr) {
      const size_t size = encode_delta(known, page, kPageSize - 1, scratch.delta.data());
      if (size == 0) {
        ++counts.same;
        continue;
      }
      choice = encode_changed(page, size, &scratch);
    } else {
      choice = encode_whole(page, &scratch);
      if (std::byte* copy = shadow != nullptr && keep_new ? shadow->insert(pages[i]) : nullptr;
          copy != nullptr)
        std::memcpy(copy, page, kPageSize);
    }
    count(choice.encoding, &counts);
    PageEntry entry;
    entry.page = pages[i];
    entry.encoding = static_cast<uint8_t>(choice.encoding);
    entry.payload_bytes = static_cast<uint32_t>(choice.payload.size());
    put_bytes(choice.payload, out);
    std::memcpy(out->data() + table + entries++ * sizeof entry, &entry, sizeof entry);
  }
  if (entries < pages.size()) {
    // The table turned out shorter: the payloads move up to it.
    const auto gap = out->begin() + static_cast<ptrdiff_t>(table + entries * sizeof(PageEntry));
    out->erase(gap, gap + static_cast<ptrdiff_t>((pages.size() - entries) * sizeof(PageEntry)));
    const auto left = static_cast<uint32_t>(entries);
    std::memcpy(out->data() + start, &left, sizeof left);
    if (entries == 0) out->resize(start);
  }
  return counts;
}

Status check_pages(View body, uint64_t memory_pages, uint32_t* pages, bool deltas) {
  *pages = 0;
  if (body.size() < kCountBytes) return bad_pages("count is cut off");
  const uint32_t count = count_of(body);
  if (count == 0 || count > kMaxPagesPerFrame)
    return bad_pages("count " + std::to_string(count) + " is not within 1 to " +
                     std::to_string(kMaxPagesPerFrame));
  uint32_t reserved = 0;
  std::memcpy(&reserved, body.data() + 4, sizeof reserved);
  if (reserved != 0) return bad_pages("the reserved field after count is not 0");
  if (body.size() < kCountBytes + count * sizeof(PageEntry)) return bad_pages("the page table is cut off");

  uint64_t payload_bytes = 0;
  uint64_t least = 0;  // the lowest number that the next page may have
  for (uint32_t i = 0; i < count; ++i) {
    const PageEntry entry = entry_at(body, i);
    const auto which = [&] { return "page " + std::to_string(entry.page); };
    if (entry.page < least) return bad_pages(which() + " is out of order");
    if (entry.page >= memory_pages)
      return bad_pages(which() + " lies outside the memory of " + std::to_string(memory_pages) + " pages");
    least = entry.page + 1;
    if (entry.reserved[0] != 0 || entry.reserved[1] != 0 || entry.reserved[2] != 0)
      return bad_pages(which() + " has reserved bytes that are not 0");
    bool sized = false;
    switch (static_cast<PageEncoding>(entry.encoding)) {
      case PageEncoding::zero:
        sized = entry.payload_bytes == 0;
        break;
      case PageEncoding::raw:
        sized = entry.payload_bytes == kPageSize;
        break;
      case PageEncoding::lz4:
        sized = entry.payload_bytes >= 1 && entry.payload_bytes < kPageSize;
        break;
      case PageEncoding::delta:
      case PageEncoding::delta_lz4:
        if (!deltas) return bad_pages(which() + " is a delta, which was not agreed on");
        sized = entry.payload_bytes >= 1 && entry.payload_bytes < kPageSize;
        break;
      default:
        return bad_pages(which() + " has unknown encoding " + std::to_string(entry.encoding));
    }
    if (!sized)
      return bad_pages(which() + " has a payload of " + std::to_string(entry.payload_bytes) + " bytes");
    payload_bytes += entry.payload_bytes;
  }
  const size_t left = body.size() - kCountBytes - count * sizeof(PageEntry);
  if (payload_bytes != left)
    return bad_pages("payloads of " + std::to_string(payload_bytes) + " bytes in a body with " +
                     std::to_string(left));
  *pages = count;
  return {};
}

Status apply_pages(View body, std::span<std::byte> memory) {
  const uint32_t count = count_of(body);
  REMUSD_ASSERT(fits(body, count), "check_pages accepted this body");
  std::array<std::byte, kMaxDeltaBytes> scratch;
  View payloads = body.subspan(kCountBytes + count * sizeof(PageEntry));
  for (uint32_t i = 0; i < count; ++i) {
    const PageEntry entry = entry_at(body, i);
    REMUSD_ASSERT(entry.page < memory.size() / kPageSize, "check_pages accepted this body for this memory");
    std::byte* page = memory.data() + entry.page * kPageSize;
    const View payload = payloads.first(entry.payload_bytes);
    payloads = payloads.subspan(entry.payload_bytes);
    const auto encoding = static_cast<PageEncoding>(entry.encoding);
    switch (encoding) {
      case PageEncoding::zero:
        std::memset(page, 0, kPageSize);
        break;
      case PageEncoding::raw:
        REMUSD_ASSERT(payload.size() == kPageSize, "check_pages accepted this body");
        std::memcpy(page, payload.data(), kPageSize);
        break;
      case PageEncoding::lz4:
        if (decompress(payload, page, kPageSize) != static_cast<int>(kPageSize))
          return bad_pages(kNotAPage, entry.page);
        break;
      case PageEncoding::delta:
      case PageEncoding::delta_lz4: {
        const View delta = delta_of(encoding, payload, scratch.data());
        if (delta.empty()) return bad_pages(kNotADelta, entry.page);
        apply_delta(delta.data(), page);
        break;
      }
    }
  }
  return {};
}

Status verify_pages(View body) {
  const uint32_t count = count_of(body);
  REMUSD_ASSERT(fits(body, count), "check_pages accepted this body");
  std::array<std::byte, kMaxDeltaBytes> scratch;
  View payloads = body.subspan(kCountBytes + count * sizeof(PageEntry));
  for (uint32_t i = 0; i < count; ++i) {
    const PageEntry entry = entry_at(body, i);
    const View payload = payloads.first(entry.payload_bytes);
    payloads = payloads.subspan(entry.payload_bytes);
    const auto encoding = static_cast<PageEncoding>(entry.encoding);
    if (encoding == PageEncoding::lz4) {
      if (decompress(payload, scratch.data(), kPageSize) != static_cast<int>(kPageSize))
        return bad_pages(kNotAPage, entry.page);
    } else if (encoding == PageEncoding::delta || encoding == PageEncoding::delta_lz4) {
      if (delta_of(encoding, payload, scratch.data()).empty()) return bad_pages(kNotADelta, entry.page);
    }
  }
  return {};
}

}  // namespace remusd::ckpt
