// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "ckpt/status.h"
#include "guest/definition.h"

namespace remusd::control {

/// Reads a guest's TOML file, completes and validates it. A failure's message begins with "file:line: " where
/// a line is to blame.
Result<guest::Definition> load_guest_file(const std::string& path);

}  // namespace remusd::control
