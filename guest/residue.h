// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The RAM image that a guest or a standby leaves behind when it is destroyed. Most of it is what the other
// side of the pair has, too: the next standby of the same guest begins with it, and the first sync sends what
// differs. It is a hint and no more: nothing may rely on what it holds.
#pragma once

#include <cstdint>
#include <span>

#include "ckpt/mapping.h"
#include "ckpt/pages.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"

namespace remusd::guest {

/// Owns the memory file, which its last owner may have left open elsewhere. Not thread-safe.
class Residue {
 public:
  Residue() = default;  // empty: nothing was left
  Residue(ScopedFd file, Mapping memory) : file_(std::move(file)), memory_(std::move(memory)) {}

  bool empty() const { return memory_.size() == 0; }
  std::span<const std::byte> memory() const { return memory_.bytes(); }
  /// What it takes up now; pages that were never written take nothing.
  uint64_t used_bytes() const;
  /// Replaces *pages by those that take memory; all others are zero, and need not be looked at.
  Status populated(PageSet* pages) const;
  /// Gives back what these pages take; they read as zeros then. Best effort.
  void release(const PageRange& pages);

 private:
  ScopedFd file_;
  Mapping memory_;
};

/// Replaces *pages by those that the memory file holds from byte `begin` to `end`, multiples of kPageSize
/// (all others are zero).
Status populated_pages(int fd, uint64_t begin, uint64_t end, PageSet* pages);

}  // namespace remusd::guest
