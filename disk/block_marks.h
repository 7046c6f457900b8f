// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A mark for each region of a disk, set on one thread while another one takes them. A region is a block of 4
// KiB, or more where a disk has more than 32 GiB: at most 1 MiB of memory for each disk.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <vector>

#include "ckpt/disk_digest.h"

namespace remusd::disk {

class BlockMarks {
 public:
  static constexpr uint64_t kMostBytes = 1u << 20;  // of memory

  explicit BlockMarks(uint64_t disk_bytes)
      : disk_bytes_(disk_bytes),
        region_bytes_(std::max(ckpt::kDiskBlockBytes, std::bit_ceil(disk_bytes / kMaxRegions))),
        regions_((disk_bytes + region_bytes_ - 1) / region_bytes_),
        words_((regions_ + kWordRegions - 1) / kWordRegions) {}

  /// All regions that the run touches.
  void mark(uint64_t offset, uint64_t bytes) {
    for (uint64_t region = offset / region_bytes_; region <= (offset + bytes - 1) / region_bytes_; ++region)
      words_[region / kWordRegions].fetch_or(bit(region));
  }
  /// Those that lie within the run whole.
  void unmark(uint64_t offset, uint64_t bytes) {
    const uint64_t end = offset + bytes == disk_bytes_ ? regions_ * region_bytes_ : offset + bytes;
    for (uint64_t region = (offset + region_bytes_ - 1) / region_bytes_; (region + 1) * region_bytes_ <= end;
         ++region)
      words_[region / kWordRegions].fetch_and(~bit(region));
  }
  bool marked(uint64_t offset) const {
    const uint64_t region = offset / region_bytes_;
    return (words_[region / kWordRegions].load() & bit(region)) != 0;
  }
  uint64_t marked_bytes() const {
    uint64_t regions = 0;
    for (const auto& word : words_) regions += static_cast<uint64_t>(std::popcount(word.load()));
    return regions * region_bytes_;
  }
  /// Clears the first mark from `*offset` on and tells its run, cut to the disk; *offset goes behind it.
  /// False: there is none.
  bool take(uint64_t* offset, uint64_t* begin, uint64_t* bytes) {
    for (uint64_t region = *offset / region_bytes_; region < regions_;) {
      std::atomic<uint64_t>& word = words_[region / kWordRegions];
      if (word.load() == 0) {
        region = (region / kWordRegions + 1) * kWordRegions;
        continue;
      }
      if ((word.fetch_and(~bit(region)) & bit(region)) == 0) {
        ++region;
        continue;
      }
      *begin = region * region_bytes_;
      *bytes = std::min(region_bytes_, disk_bytes_ - *begin);
      *offset = *begin + region_bytes_;
      return true;
    }
    return false;
  }

 private:
  static constexpr uint64_t kMaxRegions = kMostBytes * 8;
  static constexpr uint64_t kWordRegions = 64;
  static uint64_t bit(uint64_t region) { return uint64_t{1} << region % kWordRegions; }

  uint64_t disk_bytes_, region_bytes_, regions_;
  std::vector<std::atomic<uint64_t>> words_;
};

}  // namespace remusd::disk
