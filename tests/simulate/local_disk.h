// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A host's disk and the journal beside it, on one medium that has a volatile cache, can fail, and loses power
// with the host (tests/disk_power.h). It outlives the host's crashes. A block is a few bytes, and lies across
// the border of two sectors: a loss of power can tear it, and a seed does not cost much.
#pragma once

#include <array>

#include "disk/journal.h"
#include "tests/disk_power.h"
#include "tests/simulate/guest.h"

namespace remusd::simulate {

inline constexpr uint32_t kBlockBytes = 16;
inline constexpr std::array<uint64_t, 1> kDiskSizes{kDiskBlocks * 1024};
inline uint64_t place_of(uint32_t block) {
  return block * 1024 + 512 - kBlockBytes / 2;
}

/// A block as it lies on a disk, and what such bytes hold; a torn one holds a value that nobody wrote.
using BlockBytes = std::array<std::byte, kBlockBytes>;
BlockBytes block_of(uint64_t value);
uint64_t value_of(const BlockBytes& block);

class LocalDisk {
 public:
  LocalDisk();

  // By the guest that runs on it.
  Status write(uint32_t block, uint64_t value);
  Status flush() { return disk_->flush(); }
  uint64_t read(uint32_t block) const;
  Blocks blocks() const;
  /// As it was bought, without a journal.
  void clear();

  // By a replica.
  const disk::Media& media() const { return media_; }
  disk::Medium& journal() { return *journal_; }
  /// The journal's file is removed.
  void drop_journal() { journal_->renew(); }

  // Faults, counted in writes and flushes of both files.
  void fail_at(uint64_t operation, int error, uint64_t count) { power_.fail_at(operation, error, count); }
  void cut_power_at(uint64_t operation) { power_.cut_at(operation); }
  void heal() {
    power_.fail_at(disk::Power::kNever, 0);
    power_.cut_at(disk::Power::kNever);
  }
  /// The power went in the middle of an operation: the host is to crash.
  bool off() const { return power_.off(); }
  /// Of what was not flushed any part is lost; then it is healed.
  void lose_power(Random& random) { power_.cycle(static_cast<uint32_t>(random.next())); }

 private:
  disk::Power power_;
  std::shared_ptr<disk::PowerMedium> disk_, journal_;
  disk::Media media_;
};

}  // namespace remusd::simulate
