// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace remusd::guest_service {

/// By the guest's own clock.
struct FlushTimes {
  uint64_t count = 0, p50_ns = 0, mean_ns = 0;
};

/// Writes 4 KiB over what is in the file and flushes it (fdatasync), `count` times, a flush each `every_us`
/// (0: one after the other). The file is made, with its blocks, if it is not there. None: the disk failed.
std::optional<FlushTimes> time_flushes(const std::string& path, uint32_t count, uint32_t every_us);

}  // namespace remusd::guest_service
