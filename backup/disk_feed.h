// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// From the store to the replica of a guest's disks, and to what is kept of those that are held. A failure is
// the replica's, whose owner looks at it: what comes after it is dropped there.
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

#include "backup/held_epochs.h"
#include "backup/store.h"
#include "disk/replica.h"

namespace remusd::backup {

class DiskFeed final : public DiskSink {
 public:
  /// The replica outlives it; null: every disk is held. `held`: those that are, a bit each.
  DiskFeed(disk::Replica* replica, uint64_t generation, uint32_t held, uint64_t limit_bytes)
      : replica_(replica), generation_(generation), held_(held), kept_(limit_bytes) {}

  // Bodies have runs of held disks or of others (is_held(), which has looked at them).
  void sync(ckpt::Bytes body) override {
    if (goes_to_kept(body))
      kept_.add(1, std::move(body));
    else
      (void)replica_->sync(std::move(body));
  }
  void commit(uint64_t epoch, std::vector<ckpt::Bytes> bodies) override {
    std::vector<ckpt::Bytes> others;
    for (ckpt::Bytes& body : bodies) {
      if (goes_to_kept(body))
        kept_.add(epoch, std::move(body));
      else
        others.push_back(std::move(body));
    }
    if (replica_ != nullptr) (void)replica_->commit(epoch, std::move(others), generation_);
  }
  /// True while nothing more should be acknowledged.
  bool behind() const { return replica_ != nullptr && replica_->over_limit(); }

  bool holds() const { return held_ != 0; }
  HeldEpochs& kept() { return kept_; }
  const HeldEpochs& kept() const { return kept_; }

 private:
  bool goes_to_kept(const ckpt::Bytes& body) const {
    if (held_ == 0) return false;
    const Result<bool> held = ckpt::is_held(body, held_);
    REMUSD_ASSERT(held.ok() && (*held || replica_ != nullptr), "the store has looked at it");
    return *held;
  }

  disk::Replica* const replica_;
  const uint64_t generation_;
  const uint32_t held_;
  HeldEpochs kept_;
};

}  // namespace remusd::backup
