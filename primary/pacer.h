// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// When the next epoch begins. Pure: it is told what happened and when, and keeps no clock of its own.
//
//   - Without more, epochs begin on an absolute grid of `interval`: no drift.
//   - With a latency target an epoch ends early when output waits: in time for its acknowledgement to come
//     within the target, but never less than epoch_min after it began. The grid then starts anew from there.
//   - With a bound on the guest's slow-down every epoch is a cost (its pause, and a write-protect fault for
//     each dirty page) that is paid off at the rate max_slowdown: an epoch waits until what is owed is no
//     more than a short burst. It waits at most kLongestInterval.
//   - Between two pauses the guest runs for a quarter of the interval at least (half of it after an epoch
//   that
//     took longer than that; half of epoch_min before one that ends early), whatever else is asked for.
//
// Not thread-safe: the epoch thread owns it.
#pragma once

#include <optional>

#include "ckpt/epoch_sample.h"

namespace remusd::primary {

struct PaceOptions {
  Duration interval = std::chrono::milliseconds(25);
  Duration latency_target{};  // from output to its release; zero: output does not end epochs early
  Duration epoch_min =
      std::chrono::milliseconds(2);  // between two epochs' starts when output ends them early
  double max_slowdown = 0;           // share of the guest's time that epochs may cost, 0 to 1; 0: no bound

  bool operator==(const PaceOptions&) const = default;
};

class Pacer {
 public:
  /// No epoch is put off for longer than this for the sake of max_slowdown.
  static constexpr Duration kLongestInterval = std::chrono::seconds(1);
  /// What a first write to a page costs the guest in each epoch (measured, DESIGN.md section 2).
  static constexpr Duration kFaultCost = std::chrono::microseconds(1);
  /// The bound holds over stretches of this length and longer; within one, epochs may come in a burst.
  static constexpr Duration kBurstSpan = std::chrono::milliseconds(200);

  explicit Pacer(const PaceOptions& options) : options_(options) {}

  /// An epoch's pause is over. `dirty_pages`: as the sample has them.
  void paused(Time began, Time ended, uint64_t dirty_pages);

  struct Due {
    Time at;
    EpochReason reason;
  };
  /// When the next epoch is due. `output_since`: since when output waits that no sealed epoch covers;
  /// `commit`: how long it takes, at present, from the start of a pause to the acknowledgement.
  /// REQUIRES: paused() was called.
  Due next(std::optional<Time> output_since, Duration commit) const;

 private:
  Time slowdown_allows() const;

  PaceOptions options_;
  bool any_ = false;
  Time began_{}, ended_{};  // of the last pause
  Time grid_{};             // point of the grid after it
  bool late_ = false;       // points of the grid were missed
  Duration owed_{};         // when it ended
};

}  // namespace remusd::primary
