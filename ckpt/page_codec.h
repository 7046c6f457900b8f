// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// PAGES bodies: pages to bytes and back. Zero pages cost their table entry only; where a copy of what the
// backup has is at hand, a page goes as what changed in it, and not at all when nothing did; a page that lz4
// does not make smaller goes raw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ckpt/records.h"
#include "ckpt/shadow.h"

namespace remusd::ckpt {

struct PageCounts {
  uint64_t zero = 0, raw = 0, lz4 = 0, delta = 0, delta_lz4 = 0;
  uint64_t same = 0;  // left out: the backup has them
  /// Those in the body.
  uint64_t total() const { return zero + raw + lz4 + delta + delta_lz4; }
};

/// Appends a PAGES body for `pages` (page numbers, ascending) whose contents lie one after another in `data`;
/// nothing at all when every page is left out. With a shadow, pages that it keeps go as deltas, and it is
/// brought up to date: the body must then be sent before any that is encoded later. `keep_new`: pages that it
/// does not have yet may be taken in.
/// REQUIRES: 1 <= pages.size() <= kMaxPagesPerFrame, data.size() == pages.size() * kPageSize.
PageCounts encode_pages(std::span<const uint64_t> pages, std::span<const std::byte> data, Bytes* out,
                        Shadow* shadow = nullptr, bool keep_new = true);

/// Checks a PAGES body whole (bounds, order, sizes, page numbers below `memory_pages`) without decoding;
/// *pages is its count. Deltas are refused unless `deltas` were agreed on.
Status check_pages(View body, uint64_t memory_pages, uint32_t* pages, bool deltas = false);

/// Decodes a body that check_pages accepted into `memory`, which holds what deltas are taken against. Fails
/// with `corrupt` when a payload does not decode to exactly one page or one delta; pages before it have then
/// been written, so verify first with verify_pages() where a half-applied frame would matter.
Status apply_pages(View body, std::span<std::byte> memory);
/// Decodes every payload into scratch memory only, to know that apply_pages cannot fail.
Status verify_pages(View body);

}  // namespace remusd::ckpt
