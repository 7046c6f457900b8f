// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/pace.h"

#include <cstdio>

#include "control/duration.h"

namespace remusd::control {
namespace {

Status number_within(const nlohmann::json& arguments, const char* name, double low, double high,
                     const std::string& range, double* out) {
  const auto found = arguments.find(name);
  if (found == arguments.end()) return {};
  if (!found->is_number()) return {Code::invalid, "argument '" + std::string(name) + "' has the wrong type"};
  const double value = found->get<double>();
  if (!(value >= low && value <= high))
    return {Code::invalid, std::string(name) + " is out of range; it must be " + range};
  *out = value;
  return {};
}

Duration from_ms(double ms) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double, std::milli>(ms));
}

}  // namespace

Result<primary::PaceOptions> make_pace(const Config& config, const nlohmann::json& arguments) {
  double epoch = config.epoch_ms, target = config.latency_target_ms, floor = config.epoch_min_ms;
  double slowdown = config.max_slowdown_percent / 100.0;
  REMUSD_TRY(number_within(arguments, "epoch_ms", kEpochMinMs, kEpochMaxMs, "from 2ms to 1s", &epoch));
  REMUSD_TRY(number_within(arguments, "latency_target_ms", 0, kEpochMaxMs, "at most 1s", &target));
  REMUSD_TRY(
      number_within(arguments, "epoch_min_ms", kEpochFloorMinMs, kEpochMaxMs, "from 500us to 1s", &floor));
  REMUSD_TRY(number_within(arguments, "max_slowdown", 0, 0.9, "from 0 to 0.9", &slowdown));
  primary::PaceOptions pace;
  pace.interval = from_ms(epoch);
  pace.latency_target = from_ms(target);
  pace.epoch_min = from_ms(floor);
  pace.max_slowdown = slowdown;
  return pace;
}

std::string describe(const primary::PaceOptions& pace) {
  std::string text = "epochs of " + format_duration(pace.interval);
  if (pace.latency_target > Duration::zero()) {
    text += ", sooner (from " + format_duration(pace.epoch_min) + ") where output would wait longer than " +
            format_duration(pace.latency_target);
  }
  if (pace.max_slowdown > 0) {
    char percent[32];
    std::snprintf(percent, sizeof percent, "%g%%", pace.max_slowdown * 100);
    text += ", slow-down at most " + std::string(percent);
  }
  return text;
}

}  // namespace remusd::control
