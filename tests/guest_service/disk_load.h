// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Work on a file on the guest's disk, to be measured. The file is made, with its blocks, if it is not there:
// nothing that follows changes metadata. None: the disk failed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace remusd::guest_service {

/// By the guest's own clock.
struct FlushTimes {
  uint64_t count = 0, p50_ns = 0, mean_ns = 0;
};

/// Writes 4 KiB and flushes them (fdatasync), `count` times, one each `every_us` (0: one after the other).
std::optional<FlushTimes> time_flushes(const std::string& path, uint32_t count, uint32_t every_us);

/// 4 KiB at random places, 1 MiB in order.
enum class Pattern : uint32_t { random_read = 1, random_write = 2, read = 3, write = 4 };

/// Past the guest's cache, 16 requests at once, for that time by the guest's clock: how many were done.
std::optional<uint64_t> transfer(const std::string& path, Pattern pattern, uint32_t milliseconds);

}  // namespace remusd::guest_service
