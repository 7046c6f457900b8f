// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A first sync that sends only what differs: what a backup says about the image that its standby begins with
// (SEED), and what the primary says about the pages of it that are right already (KEEP). Byte diagrams and
// rules are in FORMAT.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ckpt/format.h"
#include "ckpt/pages.h"
#include "ckpt/records.h"
#include "ckpt/status.h"

namespace remusd::ckpt {

/// XXH3-128 with a secret of the session's own: what a guest writes cannot be chosen so that two pages have
/// the same one, because nobody in the guest knows the key.
struct PageDigest {
  uint64_t low = 0, high = 0;
  bool operator==(const PageDigest&) const = default;
};
static_assert(sizeof(PageDigest) == 16);
using DigestKey = std::array<std::byte, kDigestKeyBytes>;

/// 192 random bytes.
DigestKey make_digest_key();
PageDigest digest_of(const DigestKey& key, View bytes);
/// Of digests in order, one after the other.
PageDigest digest_at(View digests, size_t index);

/// Pages that the standby's memory holds and that are not zero. Pages rise through all SEED frames.
struct Seed {
  DigestKey key{};    // the same in all frames of a session
  bool last = false;  // nothing else is told; all other pages are zero
  PageSet runs;       // at most kMaxSeedPages pages; none only in the last
  View digests;       // a PageDigest for each page, in order; into the frame
  PageDigest digest(size_t index) const { return digest_at(digests, index); }
};

/// Pages that stay as they were told.
struct Keep {
  PageSet runs;       // 1 to kMaxSeedPages pages
  PageDigest digest;  // over the digests of these pages, in order
};

void encode(const Seed& record, Bytes* out);
void encode(const Keep& record, Bytes* out);
Status decode(View body, Seed* record);
Status decode(View body, Keep* record);

}  // namespace remusd::ckpt
