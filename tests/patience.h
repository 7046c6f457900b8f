// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <functional>
#include <thread>

#include "ckpt/clock.h"

namespace remusd {

/// For what must come: sanitizers on a busy machine are slow.
inline constexpr Duration kPatience = std::chrono::seconds(60);

/// True as soon as `happened` is, false when that takes longer than the test is patient. The pauses between
/// two looks only keep the processor free.
inline bool eventually(const std::function<bool()>& happened, Duration patience = kPatience) {
  const Time deadline = Clock::now() + patience;
  Duration pause = std::chrono::microseconds(20);
  while (!happened()) {
    if (Clock::now() > deadline) return false;
    std::this_thread::sleep_for(pause);
    pause = std::min<Duration>(2 * pause, std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace remusd
