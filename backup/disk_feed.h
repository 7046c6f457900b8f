// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// From the store to the replica of a guest's disks. A failure is the replica's, whose owner looks at it: what
// comes after it is dropped there.
//
// Bound: while the replica is over its limit nothing is acknowledged, so that the primary sends only what it
// may have unacknowledged. Of the first sync nothing is acknowledged: there the receive thread waits a moment
// for each body that comes without room, which slows the primary down. What comes in spite of it ends the
// session at the replica's hard limit.
//
// Not thread-safe: it belongs to the receive thread.
#pragma once

#include <utility>
#include <vector>

#include "backup/store.h"
#include "disk/replica.h"

namespace remusd::backup {

class DiskFeed final : public DiskSink {
 public:
  /// The replica outlives it.
  DiskFeed(disk::Replica& replica, uint64_t generation) : replica_(replica), generation_(generation) {}

  void sync(ckpt::Bytes body) override { (void)replica_.sync(std::move(body)); }
  void commit(uint64_t epoch, std::vector<ckpt::Bytes> bodies) override {
    (void)replica_.commit(epoch, std::move(bodies), generation_);
  }
  /// True while nothing more should be acknowledged.
  bool behind() const { return replica_.over_limit(); }

 private:
  disk::Replica& replica_;
  const uint64_t generation_;
};

}  // namespace remusd::backup
