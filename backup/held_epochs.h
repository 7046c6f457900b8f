// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What epochs change on held disks, which lie on storage that the primary writes to: kept in memory until the
// primary says that it is there, for the case that it cannot say so any more.
//
//   add(1)* --commit(k)--> kept --settled(j >= k)--> forgotten
//                            --apply()--> on the files
//
// apply() brings all that is kept to the files, in order, over whatever part of it the primary has written:
// each byte ends with its newest content, so that it does no harm to write it again.
//
// Bound: the primary keeps as much itself, in a bound of its own. What is over kHardLimit times ours is a
// failure, whose owner looks at over_limit(). Nothing is withheld before that: only what is acknowledged can
// be settled, and so be forgotten.
//
// Not thread-safe: it belongs to the receive thread.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "ckpt/disk_codec.h"
#include "disk/medium.h"

namespace remusd::backup {

class HeldEpochs {
 public:
  static constexpr uint64_t kHardLimit = 4;

  explicit HeldEpochs(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  /// Bodies that check_disk() and verify_disk() accepted, of epochs that never fall.
  void add(uint64_t epoch, ckpt::Bytes body);
  void settled(uint64_t epoch);
  /// To the files, and flushed; `disks` by number. Nothing is forgotten by it.
  Status apply(const disk::Media& disks) const;

  bool over_limit() const { return bytes_ > kHardLimit * limit_bytes_; }
  uint64_t bytes() const { return bytes_; }
  uint64_t limit_bytes() const { return limit_bytes_; }
  uint64_t settled_epoch() const { return settled_; }

 private:
  struct Kept {
    uint64_t epoch = 0;
    ckpt::Bytes body;
  };

  const uint64_t limit_bytes_;
  std::deque<Kept> kept_;
  uint64_t bytes_ = 0, settled_ = 0;
};

}  // namespace remusd::backup
