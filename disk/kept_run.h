// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "disk/change.h"

namespace remusd::disk {

/// What is kept in memory of a run of a disk: newer than what its file has there. A copy, taken before the
/// file is looked at: what is not in it the file has, or somebody writes it at this moment.
struct KeptRun {
  struct Piece {
    uint64_t offset = 0, bytes = 0;  // within the run, rising, without overlaps
    ChangeKind kind = ChangeKind::write;
    size_t at = 0;  // of a write, where its bytes lie in `data`
  };
  uint64_t offset = 0, bytes = 0;
  std::vector<Piece> pieces;
  std::vector<std::byte> data;  // empty when only the places were asked for

  /// The file need not be read.
  bool whole() const;
  /// Puts it over what the file has. REQUIRES: out.size() == bytes.
  void lay_over(std::span<std::byte> out) const;
  /// The same for block status: `extents` (nbd::Extent, of which there are `count`, from `offset` on) becomes
  /// what both have together, at most `most`, and never beyond what the file told. Returns how many.
  size_t lay_over_extents(std::span<std::byte> extents, size_t count, size_t most) const;
};

}  // namespace remusd::disk
