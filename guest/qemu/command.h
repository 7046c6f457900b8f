// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// From a guest's definition to QEMU's command line, the same on both hosts but for paths. Pure.
//
// Both sides say memory-backend-memfd,share=on (the RAM image), send-configuration=off and suppress-vmdesc=on
// (the saved device state has neither section), and give every card and disk a fixed PCI address.
#pragma once

#include <string>
#include <vector>

#include "ckpt/status.h"
#include "guest/definition.h"
#include "guest/guest.h"

namespace remusd::guest::qemu {

enum class Role { primary, standby };

/// Files of one guest in the runtime directory.
struct Paths {
  std::string monitor;  // QMP for everything but the pause
  std::string fast;     // QMP for the epoch thread alone
  std::string log;      // QEMU's standard error
};

/// See guest/awake_processor.h.
std::string awake_path(const Definition& definition, const DriverOptions& options);

/// Fails with `invalid` when a socket's path would be too long.
Result<Paths> paths_of(const Definition& definition, const DriverOptions& options);

/// The cards that the definition names, with their sockets in the runtime directory.
std::vector<NicEndpoint> nic_endpoints(const Definition& definition, const DriverOptions& options);

/// The disks that the definition names, with their servers' sockets in the runtime directory. Fails with
/// `invalid` when a socket's path would be too long.
Result<std::vector<DiskEndpoint>> disk_endpoints(const Definition& definition, const DriverOptions& options);

/// A disk's server may be away for so long, such as while a daemon is replaced: requests wait, and are sent
/// again when it is back. Then they fail, and the guest sees a disk that is broken.
inline constexpr int kDiskReconnectSeconds = 600;

/// The command line. QEMU finds its listening QMP sockets at descriptors 3 (monitor) and 4 (fast).
std::vector<std::string> build_command(const Definition& definition, const DriverOptions& options,
                                       const std::vector<NicEndpoint>& nics,
                                       const std::vector<DiskEndpoint>& disks, Role role);

/// What remusd adds to any command line: its monitors at descriptors 3 and 4, the stream's form, the role.
void append_own_options(Role role, std::vector<std::string>* argv);

}  // namespace remusd::guest::qemu
