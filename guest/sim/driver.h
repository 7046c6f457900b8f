// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The driver "sim": guests that are simulated in this process. See guest/guest.h for the contract.
#pragma once

#include <memory>

#include "guest/guest.h"

namespace remusd::guest::sim {

Result<std::unique_ptr<Guest>> start(const Definition& definition, const DriverOptions& options);
/// Its guests end with their process, so there is never one to attach to: `unsupported`.
Result<std::unique_ptr<Guest>> attach(const Definition& definition, const DriverOptions& options);
Result<std::unique_ptr<Standby>> prepare(const Definition& definition, const DriverOptions& options);

}  // namespace remusd::guest::sim
