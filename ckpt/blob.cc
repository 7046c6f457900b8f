// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Blobs (device state, base stream) to parts and back.
#include <lz4.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "ckpt/blob_delta.h"
#include "ckpt/records.h"
#include "ckpt/wire.h"

namespace remusd::ckpt {
Status bad_blob(const std::string& why) {
  return {Code::corrupt, "DEVICE or BASE record: " + why};
}

Status append_blob_part(View blob, uint64_t offset, Bytes* out, uint64_t* next_offset) {
  if (blob.size() > kMaxBlobBytes) {
    return {Code::invalid, "a blob of " + std::to_string(blob.size()) + " bytes is larger than the " +
                               std::to_string(kMaxBlobBytes) + " that a checkpoint may carry"};
  }
  if (offset > blob.size() || (offset == blob.size() && !blob.empty()))
    return {Code::invalid, "no part begins at " + std::to_string(offset) + " of a blob of " +
                               std::to_string(blob.size()) + " bytes"};
  const View raw = blob.subspan(offset, std::min<uint64_t>(kMaxBlobPartBytes, blob.size() - offset));
  BlobPart part;
  part.total_bytes = blob.size();
  part.offset = offset;
  part.raw_bytes = static_cast<uint32_t>(raw.size());
  part.encoding = PageEncoding::lz4;

  // Compress in place, behind the fixed fields; raw when that is not smaller.
  const size_t start = out->size();
  encode(part, out);
  const size_t payload = out->size();
  int size = 0;
  if (raw.size() > 1) {
    out->resize(payload + raw.size() - 1);
    size = LZ4_compress_default(reinterpret_cast<const char*>(raw.data()),
                                reinterpret_cast<char*>(out->data() + payload), static_cast<int>(raw.size()),
                                static_cast<int>(raw.size() - 1));
  }
  if (size > 0) {
    out->resize(payload + static_cast<size_t>(size));
  } else {
    out->resize(start);
    part.encoding = PageEncoding::raw;
    part.data = raw;
    encode(part, out);
  }
  *next_offset = offset + raw.size();
  return {};
}

Status decode_blob_part(const BlobPart& part, std::span<std::byte> blob) {
  if (part.offset > blob.size() || part.raw_bytes > blob.size() - part.offset)
    return bad_blob("a part reaches past its blob");
  std::byte* target = blob.data() + part.offset;
  if (part.encoding == PageEncoding::raw) {
    if (part.data.size() != part.raw_bytes) return bad_blob("data is not raw_bytes long");
    if (!part.data.empty()) std::memcpy(target, part.data.data(), part.data.size());
    return {};
  }
  if (part.encoding != PageEncoding::lz4 || part.data.size() > kMaxBlobPartBytes)
    return bad_blob("encoding is unknown");
  const int size =
      LZ4_decompress_safe(reinterpret_cast<const char*>(part.data.data()), reinterpret_cast<char*>(target),
                          static_cast<int>(part.data.size()), static_cast<int>(part.raw_bytes));
  if (size < 0 || static_cast<uint32_t>(size) != part.raw_bytes)
    return bad_blob("data does not decompress to raw_bytes");
  return {};
}

Status BlobAssembler::add(const BlobPart& part, View base) {
  if (part.total_bytes > kMaxBlobBytes) return bad_blob("total_bytes is too large");
  if (!started_) {
    if (part.offset != 0) return bad_blob("the first part does not begin at 0");
    // The claimed total is bounded, but it is only a claim: memory is taken as parts arrive.
    blob_.clear();
    started_ = true;
    total_ = part.total_bytes;
    received_ = 0;
  } else {
    if (complete()) return bad_blob("a part came after the last");
    if (part.total_bytes != total_) return bad_blob("total_bytes changed between parts");
    if (part.offset != received_)
      return bad_blob("a part begins at " + std::to_string(part.offset) + " where " +
                      std::to_string(received_) + " was due");
  }
  if (part.raw_bytes > kMaxBlobPartBytes || part.raw_bytes > total_ - received_)
    return bad_blob("a part reaches past its blob");
  if (part.raw_bytes == 0 && total_ != 0) return bad_blob("an empty part");
  const bool delta = part.encoding == PageEncoding::delta || part.encoding == PageEncoding::delta_lz4;
  if (delta && base.empty()) return bad_blob("a delta where none is due");
  blob_.resize(received_ + part.raw_bytes);
  REMUSD_TRY(delta ? decode_delta_part(part, base, blob_) : decode_blob_part(part, blob_));
  received_ += part.raw_bytes;
  return {};
}

Bytes BlobAssembler::take() {
  REMUSD_ASSERT(complete(), "only a whole blob is taken");
  Bytes whole = std::move(blob_);
  reset();
  return whole;
}

void BlobAssembler::reset() {
  blob_.clear();
  received_ = 0;
  total_ = 0;
  started_ = false;
}

}  // namespace remusd::ckpt
