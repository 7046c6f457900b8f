// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The QEMU driver: the functions of guest/guest.h for driver "qemu".
#pragma once

#include <memory>

#include "guest/guest.h"

namespace remusd::guest::qemu {

Result<std::unique_ptr<Guest>> start(const Definition& definition, const DriverOptions& options);

/// Completes the definition of a QEMU that already runs (attach_qmp) from its process: attach_command, boot
/// files, vCPUs, memory and cards, so that a peer can build the standby. The guest is not touched.
Result<Definition> describe(const Definition& definition, const DriverOptions& options);

/// Accepts a definition with or without attach_command; reads the process itself when it is missing.
Result<std::unique_ptr<Guest>> attach(const Definition& definition, const DriverOptions& options);

Result<std::unique_ptr<Guest>> adopt(const Definition& definition, const DriverOptions& options, int pid);

Result<std::unique_ptr<Standby>> prepare(const Definition& definition, const DriverOptions& options);

}  // namespace remusd::guest::qemu
