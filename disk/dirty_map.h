// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Which regions of a guest's disks may differ from a state that another host has too, across a loss of power:
// so that a resync need not look at everything. That state is a sync point: what a session's epoch 1, or a
// later committed one, left on both hosts. A region stands on stable storage before the first write to it is
// submitted, and is taken away long after the last: what is written again and again costs no flush.
//
//   no point --begin_session()--> no point, touches counted --begin(point)--> a point
//   free --touch(): false--> wanted --store()--> stored (touch(): true) --two turns without a touch--> free
//
// What always holds while there is a point: a region with a write for which touch() was true, and which
// belongs to an epoch that turn() was not told to be committed, is stored. More than that may be: it is
// looked at without need. Without a point everything may differ, and nothing waits.
//
// The file: a header block, then blocks of 4088 bytes of bits and their checksum. A block that is torn or
// damaged stands for all of its regions. The header names the files by `identity`, and how they looked when
// they were left in order; where that is not how they are, somebody else has written: there is no point.
//
// Bounds: at most 8 MiB of memory for all disks together: a region has 1 MiB up to 10 TiB of disks, twice
// that for up to twice the bytes, and so on. The file takes a sixth of the memory.
//
// Threads: touch from the server's thread; store, begin, forget and leave from one that may block, one at a
// time; the rest from any.
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
  static constexpr uint64_t kLeastRegionBytes = 1u << 20;
  static constexpr size_t kMostMemoryBytes = 8u << 20;

  /// Which files they are, and, where they were left in order, how they looked then (0: unknown).
  struct Files {
    uint64_t identity = 0;
    uint64_t look = 0;
  };

  /// The size of a region for such disks, and of the file.
  static uint64_t region_bytes_for(std::span<const uint64_t> disk_bytes);
  static uint64_t file_bytes_for(std::span<const uint64_t> disk_bytes);

  /// Reads what is stored and makes it good for what is to come, durably: no point, when the file holds no
  /// map of such disks. The file outlives the map.
  static Result<std::unique_ptr<DirtyMap>> open(Medium& file, std::span<const uint64_t> disk_bytes,
                                                const Files& files);

  /// All zero: there is none.
  ckpt::SessionId point() const;
  /// From now on what is touched is counted for the next begin(). No turns before that.
  void begin_session();
  /// Both sides are equal but for what was touched since begin_session(). Durable when it returns.
  Status begin(const ckpt::SessionId& point);
  /// Before a change is submitted. False: it has to wait until store() has returned, and to ask again.
  bool touch(size_t disk, uint64_t offset, uint64_t bytes);
  /// Makes all that is wanted durable. A failure is final: then only forget() helps.
  Status store();
  /// There is no point any more. A failure: the file may still tell of one.
  Status forget();
  /// The disks are closed in order, and look like this.
  Status leave(uint64_t look);
  /// Now and then, a minute apart or so: `open_epoch` takes the changes from now on, `committed` is durable
  /// on both hosts. Frees what nobody touched since the turn before last. False: the epochs before the last
  /// turn are not committed yet, or begin() was not called: nothing changed. What is freed is written by the
  /// next store().
  bool turn(uint64_t open_epoch, uint64_t committed);

  uint64_t region_bytes() const { return region_bytes_; }
  uint64_t stored_regions() const;
  /// The regions that may differ, as bits, the lowest of each byte first, all disks one behind the other.
  ckpt::Bytes bits() const;
  /// The runs of regions that may differ here or in `other`, as bits() of a map of the same disks (or
  /// nothing), in order, cut to the disk.
  void for_each(ckpt::View other,
                const std::function<void(size_t disk, uint64_t offset, uint64_t bytes)>& run) const;

 private:
  using Bits = std::vector<uint64_t>;
  using Blocks = std::vector<std::pair<size_t, ckpt::Bytes>>;
  DirtyMap(Medium& file, std::span<const uint64_t> disk_bytes, uint64_t identity);
  Status load(uint64_t look);
  Status load_blocks();
  Status write_header(const ckpt::SessionId& point, uint64_t look);
  ckpt::Bytes header(const ckpt::SessionId& point, uint64_t look) const;
  ckpt::Bytes block(size_t number) const;
  void mark_block(uint64_t region) { changed_[region / kRegionsPerBlock] = true; }

  static constexpr size_t kBlockBytes = 4096, kBitsBytes = kBlockBytes - sizeof(uint64_t);
  static constexpr uint64_t kRegionsPerBlock = kBitsBytes * 8;

  Medium& file_;
  const std::vector<uint64_t> disk_bytes_;
  const uint64_t region_bytes_, identity_;
  std::vector<uint64_t> first_;  // region of each disk; one more at the end

  mutable std::mutex mutex_;
  // wanted_: as the file should be; stored_: as it is for sure; now_ and before_: touched since the last
  // turn, and between that and the one before.
  Bits wanted_, stored_, now_, before_;
  std::vector<bool> changed_;  // blocks that differ from the file
  ckpt::SessionId point_{};
  uint64_t turn_epoch_ = 0;  // open at the last turn
  bool tracks_ = false;      // the file counts, or is about to
  bool begun_ = false;       // in this session
  Status failure_;
};

}  // namespace remusd::disk
