// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// How guest memory is spoken of: pages of 4096 bytes, numbered from 0 in the order of the RAM image (the
// offset in the memory file divided by 4096; not guest physical addresses, which have holes).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace remusd {

inline constexpr size_t kPageSize = 4096;

/// `count` pages from page number `first`. count > 0.
struct PageRange {
  uint64_t first = 0;
  uint64_t count = 0;
  bool operator==(const PageRange&) const = default;
};

/// Ascending, not overlapping. The owner reserves capacity so that a refill does not allocate.
using PageSet = std::vector<PageRange>;

inline uint64_t page_count(const PageSet& set) {
  uint64_t pages = 0;
  for (const PageRange& range : set) pages += range.count;
  return pages;
}

/// Adds `more` to *pages. May allocate.
void merge_pages(const PageSet& more, PageSet* pages);

/// Replaces *left by those of `pages` that are not in `others`. Allocates only while *left has too little
/// capacity.
void subtract_pages(const PageSet& pages, const PageSet& others, PageSet* left);

}  // namespace remusd
