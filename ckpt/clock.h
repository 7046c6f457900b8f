// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Time as the engine knows it: monotonic, in nanoseconds, handed to pure cores as `now`. Wall-clock time is
// used for display only; no decision rests on it.
#pragma once

#include <chrono>

namespace remusd {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;
using Duration = Clock::duration;

inline double to_seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}
inline double to_ms(Duration duration) {
  return to_seconds(duration) * 1e3;
}

}  // namespace remusd
