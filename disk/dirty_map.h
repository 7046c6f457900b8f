// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Which regions of a guest's disks may be newer here than on the backup, across a loss of power: so that a
// resync need not send everything. A region stands on stable storage before the first write to it is
// submitted, and is taken away long after the last: what is written again and again costs no flush.
//
//   free --touch(): false--> wanted --store()--> stored (touch(): true) --two turns without a touch--> free
//
// What always holds: a region with a write for which touch() was true, and which belongs to an epoch that
// turn() was not told to be committed, is stored. More than that may be: it is sent without need.
//
// The file: a header block, then blocks of 4088 bytes of bits and their checksum. A block that is torn or
// damaged stands for all of its regions; a file without a header for everything.
//
// Bounds: at most 8 MiB of memory for all disks together: a region has 64 KiB up to 680 GiB of disks, twice
// that for up to twice the bytes, and so on (2 MiB for 16 TiB). The file takes a sixth of the memory.
//
// Threads: touch from the server's thread, store from one that may block, the rest from any.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "ckpt/records.h"
#include "disk/medium.h"

namespace remusd::disk {

class DirtyMap {
 public:
  static constexpr uint64_t kLeastRegionBytes = 64u << 10;
  static constexpr size_t kMostMemoryBytes = 8u << 20;

  /// The size of a region for such disks, and of the file.
  static uint64_t region_bytes_for(std::span<const uint64_t> disk_bytes);
  static uint64_t file_bytes_for(std::span<const uint64_t> disk_bytes);

  /// Reads what is stored: all of it, when the file holds no map of such disks. The file outlives the map.
  static Result<std::unique_ptr<DirtyMap>> open(Medium& file, std::span<const uint64_t> disk_bytes);

  /// Both sides are equal but for what is touched from now on: forgets the rest. Durable when it returns.
  /// Not at the same time as store().
  Status begin();
  /// Before a change is submitted. False: it has to wait until store() has returned, and to ask again.
  bool touch(size_t disk, uint64_t offset, uint64_t bytes);
  /// Makes all that is wanted durable. A failure is final: what is stored is not known, nothing may be
  /// submitted that touch() was false for.
  Status store();
  /// Now and then, a minute apart or so: `open_epoch` takes the changes from now on, `committed` is durable
  /// on the backup. Frees what nobody touched since the turn before last. False: the epochs before the last
  /// turn are not committed yet, or begin() was never called: nothing changed. What is freed is written by
  /// the next store().
  bool turn(uint64_t open_epoch, uint64_t committed);

  uint64_t region_bytes() const { return region_bytes_; }
  uint64_t stored_regions() const;
  uint64_t stores() const;  // flushes that touching cost
  /// The runs of regions that are stored, in order, cut to the disk.
  void for_each(const std::function<void(size_t disk, uint64_t offset, uint64_t bytes)>& run) const;

 private:
  using Bits = std::vector<uint64_t>;
  using Blocks = std::vector<std::pair<size_t, ckpt::Bytes>>;
  DirtyMap(Medium& file, std::span<const uint64_t> disk_bytes);
  Status load();
  Status write(const Blocks& blocks);
  ckpt::Bytes header() const;
  ckpt::Bytes block(size_t number) const;
  void mark_block(uint64_t region) { changed_[region / kRegionsPerBlock] = true; }

  static constexpr size_t kBlockBytes = 4096, kBitsBytes = kBlockBytes - sizeof(uint64_t);
  static constexpr uint64_t kRegionsPerBlock = kBitsBytes * 8;

  Medium& file_;
  const std::vector<uint64_t> disk_bytes_;
  const uint64_t region_bytes_;
  std::vector<uint64_t> first_;  // region of each disk; one more at the end

  mutable std::mutex mutex_;
  // wanted_: as the file should be; stored_: as it is for sure; recent_: touched since the turn before last.
  Bits wanted_, stored_, now_, before_;
  std::vector<bool> changed_;  // blocks that differ from the file
  uint64_t turn_epoch_ = 0;    // open at the last turn
  uint64_t stores_ = 0;
  bool begun_ = false;
  Status failure_;
};

}  // namespace remusd::disk
