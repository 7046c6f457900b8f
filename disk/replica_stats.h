// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a replica of disks is up to, for whoever shows it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace remusd::disk {

struct ReplicaStats {
  uint64_t committed_epoch = 0;  // taken
  uint64_t applied_epoch = 0;    // and in the local files
  uint64_t durable_epoch = 0;    // and not lost with the power
  uint64_t queued_bytes = 0, limit_bytes = 0;
  uint64_t behind_bytes = 0;       // bodies that are not applied yet
  uint64_t synced_body_bytes = 0;  // of sync(), applied
  uint64_t applied_bytes = 0, applied_runs = 0;
  uint64_t journal_bytes = 0;       // written to it
  uint64_t journal_live_bytes = 0;  // that would be replayed
  uint32_t disks = 0, held = 0;     // how many the guest has; those that are held, a bit each
  uint64_t kept_bytes = 0;          // of held ones, until the primary has written them
  uint64_t journal_flushes = 0, disk_flushes = 0;

  /// What the replica holds at most, for a caller that keeps to its limit; 0: there is none.
  uint64_t memory_bytes() const {
    constexpr uint64_t kCodingBytes = 5u << 20;
    return limit_bytes == 0 ? 0 : std::max(limit_bytes, queued_bytes) + kCodingBytes;
  }
};

}  // namespace remusd::disk
