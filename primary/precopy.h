// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Whether to copy dirty pages before the pause, while the guest still runs, so that the pause copies only
// what was written since. That shortens the pause of a guest that dirties much, and costs it a second
// write-protect fault for each page that it writes again, a second scan, and bytes on the wire. So it is done
// only while it pays, which is measured from epoch to epoch. Pure; the epoch thread owns it.
#pragma once

#include <cstdint>

namespace remusd::primary {

class Precopy {
 public:
  /// Fewer pages than these are copied in the pause as fast as a second scan would take.
  static constexpr uint64_t kWorthPages = 768;
  /// After it did not pay it is not tried again for so many epochs.
  static constexpr int kRestEpochs = 256;

  bool wanted() const { return on_; }

  /// An epoch is over: how many pages were copied before and in its pause.
  void note(uint64_t before, uint64_t in_pause) {
    if (rest_ > 0) {
      --rest_;
      return;
    }
    if (!on_) {
      on_ = in_pause >= kWorthPages;
      return;
    }
    if (before + in_pause < kWorthPages) {
      on_ = false;
    } else if (in_pause > before / 2) {
      on_ = false;  // Most of what was copied was written again.
      rest_ = kRestEpochs;
    }
  }

 private:
  bool on_ = false;
  int rest_ = 0;
};

}  // namespace remusd::primary
