// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// How often a guest is checkpointed: from the configuration, and from what a protect command says otherwise.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "ckpt/status.h"
#include "control/config.h"
#include "primary/pacer.h"

namespace remusd::control {

/// `invalid` for a member of `arguments` (epoch_ms, latency_target_ms, epoch_min_ms, max_slowdown) that is
/// not a number or out of range. Members that are absent are the configuration's.
Result<primary::PaceOptions> make_pace(const Config& config, const nlohmann::json& arguments);

/// "epochs of 25 ms, slow-down at most 10%": for people.
std::string describe(const primary::PaceOptions& pace);

}  // namespace remusd::control
