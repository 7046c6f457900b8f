// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// PAGES bodies: pages to bytes and back. Zero pages cost their table entry only; a page that lz4 does not
// make smaller goes raw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ckpt/records.h"

namespace remusd::ckpt {

struct PageCounts {
  uint64_t zero = 0, raw = 0, lz4 = 0;
  uint64_t total() const { return zero + raw + lz4; }
};

/// Appends a PAGES body for `pages` (page numbers, ascending) whose contents lie one after another in `data`.
/// REQUIRES: 1 <= pages.size() <= kMaxPagesPerFrame, data.size() == pages.size() * kPageSize.
PageCounts encode_pages(std::span<const uint64_t> pages, std::span<const std::byte> data, Bytes* out);

/// Checks a PAGES body whole (bounds, order, sizes, page numbers below `memory_pages`) without decoding;
/// *pages is its count.
Status check_pages(View body, uint64_t memory_pages, uint32_t* pages);

/// Decodes a body that check_pages accepted into `memory`. Fails with `corrupt` when an lz4 payload does not
/// decode to exactly one page; pages before it have then been written, so verify first with
/// verify_pages() where a half-applied frame would matter.
Status apply_pages(View body, std::span<std::byte> memory);
/// Decodes every payload into scratch memory only, to know that apply_pages cannot fail.
Status verify_pages(View body);

}  // namespace remusd::ckpt
