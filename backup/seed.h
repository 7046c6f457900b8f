// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A standby that begins with an image rather than with zeros: what an earlier guest or standby left here is
// copied into its memory and told to the primary, page by page, as digests.
//
//   Seeder: copy and tell, slice by slice -> SeededPages: every page that was told is accounted for
//
// Always: a page that was told leaves SeededPages in one of two ways, before epoch 1 is committed: it was
// sent, or the primary said that it stays and the memory holds what the primary saw. So no page of the older
// image can be in a committed one by mistake, on whichever side that was made.
//
// Not thread-safe: both belong to the receive thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ckpt/seed.h"
#include "guest/residue.h"

namespace remusd::backup {

/// The pages that were told and are not yet accounted for. Bound: a bit for each page of the guest.
class SeededPages {
 public:
  SeededPages() = default;  // none
  SeededPages(uint64_t memory_pages, const ckpt::DigestKey& key)
      : key_(key), waiting_((memory_pages + 63) / 64) {}

  void told(uint64_t page);
  /// The pages of a PAGES body that was found right: they have new content.
  void sent(ckpt::View pages_body);
  /// A KEEP body. `corrupt` unless all its pages are waiting, and `memory` holds what the primary has.
  Status keep(ckpt::View body, std::span<const std::byte> memory);
  uint64_t waiting() const { return count_; }

 private:
  bool take(uint64_t page);

  ckpt::DigestKey key_{};
  std::vector<uint64_t> waiting_;
  uint64_t count_ = 0;
};

class Seeder {
 public:
  /// `memory`: the standby's, zeroed; outlives the Seeder. A residue of another size is not used.
  Seeder(std::span<std::byte> memory, guest::Residue residue);

  /// Copies the next few pages and makes a SEED body of them; *body stays empty when there was nothing to
  /// tell. Takes some milliseconds. REQUIRES: !done().
  void next(ckpt::Bytes* body);
  bool done() const { return done_; }
  /// Once done.
  SeededPages take() { return std::move(pages_); }
  /// Copies what is left without telling anybody, so that the memory holds all that was here.
  void finish();

 private:
  /// The next page that is not zero, copied into the memory. False: at most `budget` pages were looked at and
  /// there was none.
  bool copy_next(uint64_t* budget, uint64_t* page);

  std::span<std::byte> memory_;
  guest::Residue residue_;
  PageSet populated_;  // what is left of the residue
  size_t range_ = 0;
  uint64_t released_ = 0;  // pages below were given back
  ckpt::DigestKey key_;
  SeededPages pages_;
  bool done_ = false;
};

}  // namespace remusd::backup
