// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What one acknowledged epoch cost, for metrics and benchmarks.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "ckpt/clock.h"

namespace remusd {

/// Why an epoch began when it did, and not sooner or later.
enum class EpochReason : uint8_t {
  interval,  // its time had come
  output,    // earlier: output waited
  late,      // later: the epoch before took longer than its interval
  slowdown,  // later: the guest would have been slowed down too much
  staging,   // later, or longer: it waited for staging memory or for acknowledgements
};
inline constexpr std::array<std::string_view, 5> kEpochReasons{"interval", "output", "late", "slowdown",
                                                               "staging"};
constexpr bool is_stretched(EpochReason reason) {
  return reason != EpochReason::interval && reason != EpochReason::output;
}

struct EpochSample {
  uint64_t epoch = 0;
  EpochReason reason = EpochReason::interval;
  Duration interval{};  // from the start of the pause before to the start of this one; 0 for the first
  // Phases of the pause, on the epoch thread. pause is the whole: from before the stop order to the answer to
  // the resume order. resume begins when the last page is copied: the guest waits for its device state there.
  Duration pause{}, stop{}, scan{}, copy{}, resume{};
  Duration encode{};           // on the ship thread, all frames of the epoch
  Duration wire{};             // first byte queued to the whole epoch handed to the kernel
  Duration ack{};              // commit frame queued to acknowledgement
  Duration commit{};           // start of the pause to acknowledgement
  uint64_t dirty_pages = 0;    // copied in the pause, those that were taken unasked among them
  uint64_t precopy_pages = 0;  // copied before it, while the guest ran
  uint64_t same_pages = 0;     // dirty, but the backup had their content: not sent
  uint64_t delta_pages = 0;    // sent as what changed in them
  uint64_t device_bytes = 0;
  uint64_t disk_bytes = 0;  // changed on the guest's disks; in raw_bytes, too
  uint64_t raw_bytes = 0;   // dirty pages and blobs before anything was left out or encoded
  uint64_t sent_bytes = 0;  // frames on the wire
};

}  // namespace remusd
