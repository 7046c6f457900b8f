// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Copies of the guest's pages for the ship thread, which gets each chunk of them as soon as it is full.
#pragma once

#include <atomic>
#include <cstdint>

#include "ckpt/pages.h"
#include "guest/guest.h"
#include "primary/seed_map.h"
#include "primary/staging.h"

namespace remusd::primary {

/// Epoch thread, but for matched_pages(). Guest and staging outlive it; chunks are staging's, borrowed while
/// they are filled. Calls return false when staging was stopped; *waited as in Staging::acquire_chunk();
/// *copied (pages) is added to.
class PageCopier {
 public:
  PageCopier(guest::Guest& guest, Staging& staging) : guest_(guest), staging_(staging) {}

  /// Gets a chunk, so that copying need not begin with waiting for one.
  bool make_ready(bool* waited);
  /// `skip_zero`: pages that are zero are passed over.
  bool copy(const PageSet& pages, uint64_t epoch, bool skip_zero, bool* waited, uint64_t* copied);
  /// The first pass of a sync over what is dirty here or told there, when the standby begins with an image. A
  /// page that is written while it is looked at is dirty again in the next pass, which sends it whatever was
  /// told.
  bool copy_against(const SeedMap& seed, const PageSet& dirty_pages, bool* waited, uint64_t* copied);
  /// Hands over what is in the last chunk. `wake`: the ship thread is to look at once.
  void flush(bool wake);
  /// Gives chunks that were begun back to staging, unsent.
  void abandon();

  /// Pages that the backup has already, as far as copy_against() has come. From any thread.
  uint64_t matched_pages() const { return matched_pages_; }

 private:
  bool keep(uint64_t page, const ckpt::PageDigest& digest, const SeedMap& seed, bool* waited);
  void flush_kept(const SeedMap& seed);

  guest::Guest& guest_;
  Staging& staging_;
  Chunk* chunk_ = nullptr;  // being filled
  Chunk* kept_ = nullptr;   // being filled with pages that the backup has
  std::atomic<uint64_t> matched_pages_{0};
};

}  // namespace remusd::primary
