// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The primary's copy of what the backup last got of a page: what deltas are taken against. It keeps the pages
// that are written again and again. Which those are, it finds out as a clock does: each page that wants in
// moves a hand on by one slot; what is kept there leaves if the hand came by kPatience times since it was
// last asked for, otherwise it stays and the newcomer stays out. So a working set that is larger than the
// shadow does not chase itself through it: most of what is kept stays, and goes on paying.
//
// What always holds: a page that is kept has exactly the content that the backup's page has once all frames
// encoded so far are applied. So whoever sends a page in any way brings its copy up to date.
//
// The bound is exact: `bytes` of copies, 16 bytes for each of them, and 4 bytes for each page of the guest.
// The kernel hands the memory out as it is first used.
//
// Not thread-safe: it belongs to the ship thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ckpt/mapping.h"
#include "ckpt/pages.h"
#include "ckpt/status.h"

namespace remusd::ckpt {

class Shadow {
 public:
  /// REQUIRES: bytes >= kPageSize, memory_pages > 0.
  static Result<Shadow> make(uint64_t memory_pages, size_t bytes);

  /// The copy of `page`, kPageSize bytes to compare with and to bring up to date; null when it is not kept.
  std::byte* find(uint64_t page);
  /// Begins to keep `page`, at the cost of another where all slots are taken; null when it is not its turn.
  /// The caller fills in the content at once. REQUIRES: find(page) is null.
  std::byte* insert(uint64_t page);

  uint64_t pages() const { return slots_.size(); }
  uint64_t evicted() const { return evicted_; }
  size_t used_bytes() const;
  size_t limit_bytes() const;

 private:
  static constexpr uint8_t kPatience = 3;
  struct Slot {
    uint64_t page;
    uint8_t patience;  // how often the hand may still come by
  };
  Shadow(Mapping content, Mapping index, size_t slots);
  uint32_t& index_of(uint64_t page) const;

  Mapping content_;  // max_slots_ pages
  Mapping index_;    // for each page of the guest a u32: its slot's number plus one, 0: none
  size_t max_slots_;
  std::vector<Slot> slots_;  // those in use; it never grows past its first capacity
  size_t hand_ = 0;
  uint64_t evicted_ = 0;
};

}  // namespace remusd::ckpt
