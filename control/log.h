// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Structured logging to stderr: one line each, "time level=… vm=… gen=… epoch=… msg=\"…\"". Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "ckpt/status.h"

namespace remusd::control {

/// "debug", "info", "warn" or "error".
Status set_log_level(std::string_view level);

enum class LogLevel { debug, info, warn, error };

/// The fields that every line about a guest carries; zero and empty ones are left out.
struct LogFields {
  std::string_view vm;
  uint64_t gen = 0;
  uint64_t epoch = 0;
};

void log(LogLevel level, const LogFields& fields, std::string_view message);

}  // namespace remusd::control
