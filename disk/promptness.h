// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Whether something that might block is done on a thread that must not, which spares handing it to another
// one: as long as it turns out not to. One that took long is not tried again for a while, and each that takes
// long after that doubles the while, up to kMostDoubt. How long a single one takes nothing here bounds.
//
// Not thread-safe.
#pragma once

#include <algorithm>

#include "ckpt/clock.h"

namespace remusd::disk {

class Promptness {
 public:
  static constexpr Duration kLong = std::chrono::milliseconds(1);
  static constexpr Duration kLeastDoubt = std::chrono::milliseconds(100);
  static constexpr Duration kMostDoubt = std::chrono::seconds(10);

  bool expected(Time now = Clock::now()) const { return now >= doubted_until_; }

  void took(Time begun, Time ended) {
    if (ended - begun < kLong) {
      doubt_ = kLeastDoubt;
      return;
    }
    doubted_until_ = ended + doubt_;
    doubt_ = std::min(2 * doubt_, kMostDoubt);
  }

  /// Tells what happens while it lives.
  class Watch {
   public:
    explicit Watch(Promptness* promptness) : promptness_(promptness), begun_(Clock::now()) {}
    ~Watch() { promptness_->took(begun_, Clock::now()); }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Promptness* promptness_;
    Time begun_;
  };

 private:
  Duration doubt_ = kLeastDoubt;
  Time doubted_until_{};
};

}  // namespace remusd::disk
