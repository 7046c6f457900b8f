// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Blobs as what changed against the blob before: the device state of most epochs differs from the last in a
// few words. The layout is in FORMAT.md (blob part, encodings 16 and 17).
//
// Not thread-safe: it belongs to the ship thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "ckpt/records.h"

namespace remusd::ckpt {

/// The blob that the backup got last, kept on the primary. Holds as many bytes as that, rounded up to pages.
class BlobHistory {
 public:
  /// As append_blob_part(); parts of a blob that is as long as the one before go as deltas where that pays.
  /// REQUIRES: each part is appended once, in order, and sent; blobs are appended whole.
  Status append_part(View blob, uint64_t offset, Bytes* out, uint64_t* next_offset);

  size_t memory_bytes() const { return known_.capacity() + blocks_.capacity(); }

 private:
  /// The part's blocks as deltas in blocks_; what is known becomes the part.
  void encode_blocks(View part, uint64_t offset);

  Bytes known_;            // padded with zeros to whole pages
  uint64_t bytes_ = 0;     // of it, without the padding
  bool as_long_ = false;   // the blob that is being appended is as long as the one before
  Bytes blocks_, packed_;  // of one part
};

/// `corrupt`, for a part that is not as it must be.
Status bad_blob(const std::string& why);

/// Makes blob[part.offset, + part.raw_bytes) the same range of `base` changed by the part. `corrupt` when
/// `base` is not as long as the blob, or the part does not hold such deltas.
/// REQUIRES: decode() accepted the part; it lies within `blob`.
Status decode_delta_part(const BlobPart& part, View base, std::span<std::byte> blob);

}  // namespace remusd::ckpt
