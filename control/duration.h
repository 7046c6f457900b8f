// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "ckpt/clock.h"
#include "ckpt/status.h"

namespace remusd::control {

/// "25ms", "2s", "1.5s", "500us", "2m". A bare number is refused: its unit would be a guess.
Result<Duration> parse_duration(std::string_view text);

/// "25 ms", "2 s", "3 min 5 s": for people.
std::string format_duration(Duration duration);

}  // namespace remusd::control
