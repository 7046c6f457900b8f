// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Between the store and the replica of a guest's disks: keeps what the replica has no room for, in order, and
// says when acknowledgements must wait for it.
//
// Bound: of later epochs the primary sends so many as it may have unacknowledged, and it has a bound of its
// own for what those change. Of the first sync nothing is acknowledged: the receive thread waits a moment for
// each body that comes while there is no room, so that the primary is slowed down, and refuses what is more
// than kMostTimes the replica's bound.
//
// Not thread-safe: it belongs to the receive thread.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "backup/store.h"
#include "ckpt/clock.h"
#include "disk/replica.h"

namespace remusd::backup {

class DiskFeed final : public DiskSink {
 public:
  static constexpr size_t kMostTimes = 4;

  /// The replica outlives it.
  DiskFeed(disk::Replica& replica, uint64_t generation) : replica_(replica), generation_(generation) {}

  void sync(ckpt::Bytes body) override;
  void commit(uint64_t epoch, std::vector<ckpt::Bytes> bodies) override;

  /// Hands over what there is room for.
  void pump();
  /// True while nothing more should be acknowledged.
  bool behind() const { return !waiting_.empty() || replica_.over_limit(); }
  /// Everything committed has been handed over.
  bool drained() const { return waiting_.empty(); }
  /// Waits until it is not behind, at most until `deadline`. `exhausted`: far too much waits.
  Status wait_for_room(Time deadline);
  size_t waiting_bytes() const { return waiting_bytes_; }

 private:
  struct Item {
    uint64_t epoch = 0;  // 0: of the first sync
    std::vector<ckpt::Bytes> bodies;
  };
  void push(Item item);

  disk::Replica& replica_;
  const uint64_t generation_;
  std::deque<Item> waiting_;
  size_t waiting_bytes_ = 0;
};

}  // namespace remusd::backup
