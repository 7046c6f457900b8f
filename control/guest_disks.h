// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "control/config.h"
#include "control/guest_status.h"
#include "disk/disks.h"
#include "guest/definition.h"

namespace remusd::control {

/// Where a guest's disks keep their journal and the map of their sync point.
std::string journals_dir(const Config& config);

/// A file that is there while a guest's held disks lack what it wrote: that is in its daemon's memory.
std::string held_path(const Config& config, const std::string& vm);
/// A daemon has ended and left it there: the guest that still runs remembers more than its disks have.
bool disks_are_behind(const Config& config, const std::string& vm);

/// Opens and serves the disks of a guest that is to run here, before its hypervisor starts; null when it has
/// none. `lives`: it runs already, so that nothing may be replayed over what it has written.
Result<std::shared_ptr<disk::Disks>> open_disks(const guest::Definition& definition, const Config& config,
                                                bool lives);
/// The definition for a backup, which needs to know how large they are.
guest::Definition with_sizes(guest::Definition definition, const disk::Disks* disks);

/// "hold" or "replicate".
std::string disk_mode(bool held);
void fill_disks(const disk::Disks& disks, DisksStatus* status);

}  // namespace remusd::control
