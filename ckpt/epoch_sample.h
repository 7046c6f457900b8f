// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What one acknowledged epoch cost, for metrics and benchmarks.
#pragma once

#include <cstdint>

#include "ckpt/clock.h"

namespace remusd {

struct EpochSample {
  uint64_t epoch = 0;
  // Phases of the pause, on the epoch thread. pause is the whole: from before the stop order to the answer to
  // the resume order. save is the time still waited for device state after scan and copy.
  Duration pause{}, stop{}, scan{}, copy{}, save{}, resume{};
  Duration encode{};  // on the ship thread, all frames of the epoch
  Duration wire{};    // first byte queued to the whole epoch handed to the kernel
  Duration ack{};     // commit frame queued to acknowledgement
  Duration commit{};  // start of the pause to acknowledgement
  uint64_t dirty_pages = 0;
  uint64_t device_bytes = 0;
  uint64_t raw_bytes = 0;   // pages and blobs before encoding
  uint64_t sent_bytes = 0;  // frames on the wire
  bool stretched = false;   // the pause or the interval grew because a bound was reached
};

}  // namespace remusd
