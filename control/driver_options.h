// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "control/config.h"
#include "guest/guest.h"

namespace remusd::control {

inline guest::DriverOptions driver_options(const Config& config) {
  guest::DriverOptions options;
  options.runtime_dir = config.runtime_dir;
  options.qemu_binary = config.qemu_binary;
  options.tracker = config.tracker;
  options.qmp_timeout_ms = config.qmp_timeout_ms;
  return options;
}

}  // namespace remusd::control
