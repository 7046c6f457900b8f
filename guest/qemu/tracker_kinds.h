// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The two trackers, for plant_tracker() only. Both take a userfaultfd of the process that has shaken hands on
// the kind's features and has nothing registered yet, and an open /proc/PID/pagemap.
#pragma once

#include <memory>

#include "ckpt/scoped_fd.h"
#include "guest/qemu/tracker.h"

namespace remusd::guest::qemu {

/// Whether the kernel has PAGEMAP_SCAN, tried on one page without changing anything.
bool has_pagemap_scan(int pagemap, uint64_t address);

/// `memory` as in plant_tracker().
Result<std::unique_ptr<Tracker>> make_async_tracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram,
                                                    int memory);
Result<std::unique_ptr<Tracker>> make_sync_tracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram);

inline Status process_ended() {
  return {Code::unavailable, "collect dirty pages: the guest's process has ended"};
}

inline TrackedRange bytes_of(const PageRange& pages, TrackedRange ram) {
  return {ram.address + pages.first * kPageSize, pages.count * kPageSize};
}

/// Appends pages, merging with the last range when they touch.
inline void append_pages(PageSet* set, uint64_t first, uint64_t count) {
  if (!set->empty() && set->back().first + set->back().count == first) {
    set->back().count += count;
  } else {
    set->push_back({first, count});
  }
}

}  // namespace remusd::guest::qemu
