// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Tells acknowledgements that still count from those of a backup that may have taken over meanwhile. Pure.
//
// An acknowledgement proves that the backup had not given us up when it was sent. When this process or its
// host stood still since, it may have done so: what waits in our socket is old, and output released for it
// would be heard after the replica was. So after a stall nothing is released until the backup has spoken
// again since. Its heartbeats tell: they echo our clock as of the moment when they were sent
// (ckpt/FORMAT.md).
#pragma once

#include "ckpt/clock.h"

namespace remusd::primary {

class Freshness {
 public:
  /// `stall`: a gap between two calls of awake() above this one may have cost us the backup's patience.
  explicit Freshness(Duration stall) : stall_(stall) {}

  /// We run. Call often, and before anything that has arrived is looked at.
  void awake(Time now) {
    if (awake_ != Time{} && now - awake_ > stall_) {
      woke_ = now;
      fresh_ = false;
    }
    awake_ = now;
  }
  /// A heartbeat of the backup echoes this moment of our clock. True: from now on acknowledgements count
  /// again.
  bool echoed(Time ours) {
    if (fresh_ || ours < woke_) return false;
    return fresh_ = true;
  }
  bool fresh() const { return fresh_; }
  /// Output that has not left until then is as old as after a stall.
  Time good_until() const { return awake_ + stall_; }

 private:
  const Duration stall_;
  Time awake_{}, woke_{};
  bool fresh_ = true;
};

}  // namespace remusd::primary
