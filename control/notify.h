// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// systemd's notification protocol, without libsystemd: datagrams to the socket named by NOTIFY_SOCKET.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace remusd::control {

/// Sends e.g. "READY=1"; does nothing when nobody asked for it. Best effort.
void notify_service_manager(const std::string& message);

/// How often WATCHDOG=1 is due (half of WATCHDOG_USEC), when the service manager watches this process.
std::optional<std::chrono::microseconds> watchdog_interval();

}  // namespace remusd::control
