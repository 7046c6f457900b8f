// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Answers about disks, from whoever reads them to whoever sends them. Bound: kMaxAsked questions are under
// way. Thread-safe.
#pragma once

#include <deque>
#include <mutex>

#include "ckpt/disk_digest.h"
#include "ckpt/wire.h"

namespace remusd::disk {

class Answers {
 public:
  static constexpr size_t kMaxAsked = 4;

  /// A question has come. `exhausted`: too many have, it is not to be answered.
  Status asked() {
    const std::lock_guard lock(mutex_);
    if (asked_ == kMaxAsked) return {Code::exhausted, "too much is asked at once of the disks"};
    ++asked_;
    return {};
  }
  void put(ckpt::Bytes body) {
    const std::lock_guard lock(mutex_);
    ready_.push_back(std::move(body));
  }
  /// The oldest answer, at the end of *body; false when there is none.
  bool take(ckpt::Bytes* body) {
    const std::lock_guard lock(mutex_);
    if (ready_.empty()) return false;
    ckpt::put_bytes(ready_.front(), body);
    ready_.pop_front();
    --asked_;
    return true;
  }

 private:
  std::mutex mutex_;
  size_t asked_ = 0;  // and not taken
  std::deque<ckpt::Bytes> ready_;
};

}  // namespace remusd::disk
