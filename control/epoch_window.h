// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The last epochs of one guest, for the quantiles in `status`. Pure and bounded; not thread-safe.
#pragma once

#include <cstddef>
#include <vector>

#include "ckpt/epoch_sample.h"

namespace remusd::control {

/// The nearest-rank quantile (q in [0, 1]) of `values`, which it sorts; 0 when there are none.
double quantile(std::vector<double>* values, double q);

class EpochWindow {
 public:
  static constexpr size_t kCapacity = 4096;

  void add(const EpochSample& sample);
  void clear();
  size_t size() const { return pause_ms_.size(); }

  std::vector<double> pause_ms() const { return pause_ms_; }
  std::vector<double> interval_ms() const { return interval_ms_; }
  std::vector<double> commit_ms() const { return commit_ms_; }
  std::vector<double> dirty_pages() const { return dirty_pages_; }

 private:
  size_t next_ = 0;  // slot that the next sample takes once the window is full
  std::vector<double> pause_ms_, interval_ms_, commit_ms_, dirty_pages_;
};

}  // namespace remusd::control
