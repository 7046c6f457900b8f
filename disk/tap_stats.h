// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a tap is up to, for whoever shows it.
#pragma once

#include <cstdint>

namespace remusd::disk {

struct TapStats {
  uint64_t held_bytes = 0, limit_bytes = 0;
  uint64_t waits = 0;            // times a change had to wait for room
  uint64_t written_bytes = 0;    // by the guest, while it was logged
  uint64_t committed_bytes = 0;  // sent and acknowledged: each byte once for each epoch
  uint64_t flushes_later = 0;    // answered while the guest stood
  int flush_error = 0;           // errno of one of those that failed; 0: none
};

/// How far the guest has come.
struct TapPosition {
  uint64_t open_epoch = 0;                 // takes the changes from now on
  uint64_t newest_change = 0;              // sequence of the last one that was told
  uint64_t oldest_under_way = UINT64_MAX;  // of those that are not done
};

}  // namespace remusd::disk
