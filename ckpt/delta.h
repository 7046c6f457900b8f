// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The sparse delta of one page: which 8-byte words changed, and their exclusive or. A page is 64 lines of 64
// bytes; unchanged lines cost a bit, unchanged words of a changed line a bit more (FORMAT.md has the layout).
//
// There is a path for each kind of processor, chosen once when the program runs; all of them give the same
// bytes. Pure functions over the caller's memory: any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ckpt/pages.h"

namespace remusd::ckpt {

inline constexpr size_t kDeltaLineBytes = 64;
inline constexpr size_t kDeltaLines = kPageSize / kDeltaLineBytes;
/// The line mask, a word mask for each changed line, the changed words.
inline constexpr size_t kMinDeltaBytes = 8 + 1 + 8;
inline constexpr size_t kMaxDeltaBytes = 8 + kDeltaLines + kPageSize;
/// What encode may write to at its output: vector stores reach past the end of the payload.
inline constexpr size_t kDeltaRoomBytes = kMaxDeltaBytes + kDeltaLineBytes;

struct DeltaPath {
  const char* name;
  /// Makes base[0, kPageSize) equal to `page` and returns the size of the delta that does the same elsewhere:
  /// 0 when they were equal already. The delta itself is in `out` (kDeltaRoomBytes) only when it is at most
  /// `most` bytes long; a page that changed all over is not worth packing. The ranges do not overlap.
  size_t (*encode)(std::byte* base, const std::byte* page, size_t most, std::byte* out);
  /// Changes `page` by a delta. REQUIRES: check_delta() accepted it; then nothing outside the page and the
  /// delta is touched.
  void (*apply)(const std::byte* delta, std::byte* page);
};

/// Those that this processor can run, the fastest first, the portable one last.
std::span<const DeltaPath> delta_paths();

inline size_t encode_delta(std::byte* base, const std::byte* page, size_t most, std::byte* out) {
  return delta_paths().front().encode(base, page, most, out);
}
inline void apply_delta(const std::byte* delta, std::byte* page) {
  delta_paths().front().apply(delta, page);
}

/// True for the bytes of exactly one delta that changes something. Needs no base: what it accepts can be
/// applied to any page.
bool check_delta(std::span<const std::byte> delta);

}  // namespace remusd::ckpt
