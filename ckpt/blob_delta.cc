// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/blob_delta.h"

#include <lz4.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "ckpt/delta.h"
#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

// Below this lz4 costs more time than the bytes are worth.
constexpr size_t kCompressBlocksFrom = 256;

static_assert(kMaxBlobPartBytes % kPageSize == 0, "every part begins with a block of its own");

size_t pages_of(uint64_t bytes) {
  return (bytes + kPageSize - 1) / kPageSize;
}

}  // namespace

void BlobHistory::encode_blocks(View part, uint64_t offset) {
  blocks_.clear();
  std::array<std::byte, kDeltaRoomBytes> delta;
  std::array<std::byte, kPageSize> last;
  for (size_t at = 0; at < part.size(); at += kPageSize) {
    const std::byte* block = part.data() + at;
    if (const size_t rest = part.size() - at; rest < kPageSize) {
      last.fill(std::byte{0});
      std::memcpy(last.data(), block, rest);
      block = last.data();
    }
    const size_t size = encode_delta(known_.data() + offset + at, block, kMaxDeltaBytes, delta.data());
    put(static_cast<uint16_t>(size), &blocks_);
    put_bytes(std::span(delta).first(size), &blocks_);
  }
}

Status BlobHistory::append_part(View blob, uint64_t offset, Bytes* out, uint64_t* next_offset) {
  if (offset == 0) {
    as_long_ = !blob.empty() && blob.size() == bytes_;
    bytes_ = blob.size();
    if (!as_long_) known_.assign(pages_of(blob.size()) * kPageSize, std::byte{0});
  }
  const size_t start = out->size();
  if (!as_long_) {
    REMUSD_TRY(append_blob_part(blob, offset, out, next_offset));
    const View part = blob.subspan(offset, *next_offset - offset);
    if (!part.empty()) std::memcpy(known_.data() + offset, part.data(), part.size());
    return {};
  }
  BlobPart part;
  part.total_bytes = blob.size();
  part.offset = offset;
  REMUSD_ASSERT(offset < blob.size(), "parts are appended in order");
  const View raw = blob.subspan(offset, std::min<uint64_t>(kMaxBlobPartBytes, blob.size() - offset));
  part.raw_bytes = static_cast<uint32_t>(raw.size());
  encode_blocks(raw, offset);
  // A state that changed all over goes as if there were no other.
  if (blocks_.size() > raw.size() / 2) return append_blob_part(blob, offset, out, next_offset);
  part.encoding = PageEncoding::delta;
  part.data = blocks_;
  if (blocks_.size() >= kCompressBlocksFrom) {
    packed_.resize(blocks_.size() - blocks_.size() / 8);
    const int size = LZ4_compress_default(reinterpret_cast<const char*>(blocks_.data()),
                                          reinterpret_cast<char*>(packed_.data()),
                                          static_cast<int>(blocks_.size()), static_cast<int>(packed_.size()));
    if (size > 0) {
      part.encoding = PageEncoding::delta_lz4;
      part.data = View(packed_).first(static_cast<size_t>(size));
    }
  }
  encode(part, out);
  REMUSD_ASSERT(out->size() - start <= kMaxBodyBytes, "half a part fits into a frame");
  *next_offset = offset + raw.size();
  return {};
}

Status decode_delta_part(const BlobPart& part, View base, std::span<std::byte> blob) {
  REMUSD_ASSERT(part.offset <= blob.size() && part.raw_bytes <= blob.size() - part.offset,
                "the part lies in the blob");
  if (base.size() != part.total_bytes) {
    return bad_blob("a delta against a state of " + std::to_string(base.size()) + " bytes makes one of " +
                    std::to_string(part.total_bytes));
  }
  if (part.offset % kPageSize != 0) return bad_blob("a delta begins within a block");
  View rest = part.data;
  Bytes plain;
  if (part.encoding == PageEncoding::delta_lz4) {
    // Half of raw_bytes is the most that a sender makes of it; the whole is what is allowed.
    plain.resize(part.raw_bytes);
    const int size = LZ4_decompress_safe(reinterpret_cast<const char*>(part.data.data()),
                                         reinterpret_cast<char*>(plain.data()),
                                         static_cast<int>(part.data.size()), static_cast<int>(plain.size()));
    if (size < 0) return bad_blob("data does not decompress to deltas");
    rest = View(plain).first(static_cast<size_t>(size));
  } else if (part.encoding != PageEncoding::delta) {
    return bad_blob("encoding is unknown");
  }
  const std::span<std::byte> target = blob.subspan(part.offset, part.raw_bytes);
  std::memcpy(target.data(), base.data() + part.offset, target.size());
  for (size_t at = 0; at < target.size(); at += kPageSize) {
    uint16_t size = 0;
    if (rest.size() < sizeof size) return bad_blob("a block's delta is missing");
    std::memcpy(&size, rest.data(), sizeof size);
    rest = rest.subspan(sizeof size);
    if (size == 0) continue;
    if (size > rest.size() || !check_delta(rest.first(size)))
      return bad_blob("a block does not hold one delta");
    const size_t block_bytes = std::min(kPageSize, target.size() - at);
    std::array<std::byte, kPageSize> block{};
    std::memcpy(block.data(), target.data() + at, block_bytes);
    apply_delta(rest.data(), block.data());
    const auto beyond = std::span(block).subspan(block_bytes);
    if (std::any_of(beyond.begin(), beyond.end(), [](std::byte byte) { return byte != std::byte{0}; }))
      return bad_blob("a delta reaches past its blob");
    std::memcpy(target.data() + at, block.data(), block_bytes);
    rest = rest.subspan(size);
  }
  return rest.empty() ? Status() : bad_blob("bytes follow the last delta");
}

}  // namespace remusd::ckpt
