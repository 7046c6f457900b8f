// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/pacer.h"

#include <algorithm>

#include "ckpt/status.h"

namespace remusd::primary {
namespace {

Duration scaled(Duration duration, double factor) {
  return std::chrono::duration_cast<Duration>(duration * factor);
}

}  // namespace

void Pacer::paused(Time began, Time ended, uint64_t dirty_pages) {
  if (options_.max_slowdown > 0) {
    if (any_) owed_ -= std::min(owed_, scaled(ended - ended_, options_.max_slowdown));
    owed_ += ended - began + kFaultCost * static_cast<int64_t>(dirty_pages);
  }
  // An epoch that began off the grid, early or put off, starts a grid of its own.
  const bool on_grid = any_ && began >= grid_ && began < grid_ + options_.interval;
  grid_ = (on_grid ? grid_ : began) + options_.interval;
  late_ = false;
  if (grid_ < ended) {
    late_ = any_;  // The first one takes a base stream with it.
    grid_ += (ended - grid_) / options_.interval * options_.interval;
    grid_ = std::max(grid_, ended + options_.interval / 2);
  }
  grid_ = std::max(grid_, ended + options_.interval / 4);
  any_ = true;
  began_ = began;
  ended_ = ended;
}

/// When what is owed has shrunk to what a burst may owe.
Time Pacer::slowdown_allows() const {
  const Duration burst = scaled(kBurstSpan, options_.max_slowdown);
  if (options_.max_slowdown <= 0 || owed_ <= burst) return ended_;
  const Time when = ended_ + scaled(owed_ - burst, 1 / options_.max_slowdown);
  return std::min(when, std::max(began_ + kLongestInterval, ended_));
}

Pacer::Due Pacer::next(std::optional<Time> output_since, Duration commit) const {
  REMUSD_ASSERT(any_, "the first epoch is due at once");
  Due due{grid_, late_ ? EpochReason::late : EpochReason::interval};
  if (output_since && options_.latency_target > Duration::zero()) {
    Time early = std::max(*output_since + options_.latency_target - commit, began_ + options_.epoch_min);
    early = std::max(early, ended_ + options_.epoch_min / 2);
    if (early < due.at) due = {early, EpochReason::output};
  }
  if (const Time allowed = slowdown_allows(); allowed > due.at) due = {allowed, EpochReason::slowdown};
  return due;
}

}  // namespace remusd::primary
