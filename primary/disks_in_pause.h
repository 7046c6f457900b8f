// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "disk/tap.h"

namespace remusd::primary {

/// The guest's disks while it is made to stand: no request of it waits for room, no flush for the medium.
class DisksInPause {
 public:
  explicit DisksInPause(disk::Tap* tap) : tap_(tap) {
    if (tap_ != nullptr) tap_->pausing();
  }
  ~DisksInPause() {
    if (tap_ != nullptr) tap_->resumed();
  }
  DisksInPause(const DisksInPause&) = delete;
  DisksInPause& operator=(const DisksInPause&) = delete;
  /// The guest stands: what it has changed belongs to `epoch`.
  void seal(uint64_t epoch) const {
    if (tap_ != nullptr) tap_->seal(epoch);
  }

 private:
  disk::Tap* const tap_;
};

}  // namespace remusd::primary
