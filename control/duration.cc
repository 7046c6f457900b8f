// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/duration.h"

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace remusd::control {

namespace {

constexpr double kMaxSeconds = 1e9;  // a Duration counts nanoseconds in 64 bits

}  // namespace

Result<Duration> parse_duration(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, double>, 4> kUnits{
      {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1.0}, {"m", 60.0}}};
  const Status wrong(Code::invalid,
                     "'" + std::string(text) + "' is not a duration; write 500us, 25ms, 2s or 3m");
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || !std::isfinite(number) || number < 0) return wrong;
  const std::string_view unit(rest, static_cast<size_t>(end - rest));
  for (const auto& [name, seconds] : kUnits) {
    if (unit == name) {
      if (number * seconds > kMaxSeconds) return wrong;
      return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(number * seconds));
    }
  }
  return wrong;
}

std::string format_duration(Duration duration) {
  const double seconds = to_seconds(duration);
  char text[64];
  if (seconds < 1) {
    std::snprintf(text, sizeof text, "%.4g ms", seconds * 1e3);
  } else if (seconds < 100) {
    std::snprintf(text, sizeof text, "%.3g s", seconds);
  } else {
    // A duration may have more seconds than an int holds.
    const auto whole = static_cast<long long>(seconds);
    std::snprintf(text, sizeof text, "%lld min %lld s", whole / 60, whole % 60);
  }
  return text;
}

}  // namespace remusd::control
