// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/epoch_window.h"

#include <algorithm>
#include <cmath>

#include "ckpt/status.h"

namespace remusd::control {

double quantile(std::vector<double>* values, double q) {
  REMUSD_ASSERT(q >= 0 && q <= 1, "a quantile is a share");
  if (values->empty()) return 0;
  std::sort(values->begin(), values->end());
  const double rank = std::ceil(q * static_cast<double>(values->size()));
  return (*values)[rank < 1 ? 0 : static_cast<size_t>(rank) - 1];
}

void EpochWindow::add(const EpochSample& sample) {
  if (pause_ms_.size() < kCapacity) {
    pause_ms_.push_back(0);
    interval_ms_.push_back(0);
    commit_ms_.push_back(0);
    dirty_pages_.push_back(0);
    next_ = pause_ms_.size() - 1;
  }
  pause_ms_[next_] = to_ms(sample.pause);
  interval_ms_[next_] = to_ms(sample.interval);
  commit_ms_[next_] = to_ms(sample.commit);
  dirty_pages_[next_] = static_cast<double>(sample.dirty_pages);
  next_ = (next_ + 1) % kCapacity;
}

void EpochWindow::clear() {
  next_ = 0;
  pause_ms_.clear();
  interval_ms_.clear();
  commit_ms_.clear();
  dirty_pages_.clear();
}

}  // namespace remusd::control
