// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the backup says its standby's memory begins with: a digest for each page that is not zero there. The
// ship thread fills it in; whole, it goes to the epoch thread, which uses each digest once at most: for the
// first version of the page that the first pass looks at, before anything was sent of it.
//
// Bound: 16 bytes and a bit for each page of the guest; what is not told takes nothing.
#pragma once

#include <memory>
#include <vector>

#include "ckpt/mapping.h"
#include "ckpt/seed.h"

namespace remusd::primary {

class SeedMap {
 public:
  static Result<std::unique_ptr<SeedMap>> make(uint64_t memory_pages);

  /// The next SEED frame. `corrupt` for pages outside the memory, out of order or told twice, another key,
  /// and anything after the last one.
  Status add(const ckpt::Seed& record);
  bool complete() const { return complete_; }

  uint64_t pages() const { return pages_; }  // that were told
  const ckpt::DigestKey& key() const { return key_; }
  bool has(uint64_t page) const { return (told_[page / 64] >> (page % 64) & 1) != 0; }
  /// REQUIRES: has(page).
  const ckpt::PageDigest& digest(uint64_t page) const {
    return reinterpret_cast<const ckpt::PageDigest*>(digests_.data())[page];
  }

  static uint64_t limit_bytes(uint64_t memory_pages);

 private:
  SeedMap(uint64_t memory_pages, Mapping digests);

  uint64_t memory_pages_;
  Mapping digests_;  // of all pages, by number
  std::vector<uint64_t> told_;
  ckpt::DigestKey key_{};
  bool begun_ = false, complete_ = false;
  uint64_t next_ = 0;  // the lowest page that may be told
  uint64_t pages_ = 0;
};

}  // namespace remusd::primary
