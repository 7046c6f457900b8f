// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What one epoch changes on a guest's disks: the newest content of every byte that was touched, once, however
// often it was overwritten. Order within the epoch is gone with that, which is why an epoch is applied whole
// or not at all.
//
// Pure and not thread-safe; tap.h guards it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "ckpt/disk_codec.h"
#include "disk/change.h"

namespace remusd::disk {

class EpochLog {
 public:
  EpochLog() = default;
  EpochLog(EpochLog&&) = default;
  EpochLog& operator=(EpochLog&&) = default;

  /// `data` of a write is copied; returns where to, which stays as long as the log.
  const std::byte* add(const Change& change, std::span<const std::byte> data);
  bool empty() const { return runs_ == 0; }
  /// How much held_bytes() may rise by adding it.
  uint64_t cost(const Change& change) const;
  /// Memory that it holds, at least. Content that was overwritten in part counts until the log is gone.
  uint64_t held_bytes() const { return held_bytes_ + runs_ * kRunCost; }
  uint64_t written_bytes() const { return written_bytes_; }  // as the guest wrote them, repeats and all

  /// Takes the next runs, in order of disk and place, as one DISK body at the end of *out; *raw_bytes is what
  /// they change. A body has runs of disks in the set `apart` (a bit each) or of others, never of both. False
  /// when none is left. No add() after the first take(). The log still has what was taken.
  bool take(ckpt::DiskBody* body, ckpt::Bytes* out, uint64_t* raw_bytes, uint32_t apart = 0);

  /// All runs of the disks in the set, in order of disk and place, until `visit(run, data)` is not ok. Not
  /// while add() is called; together with take() from another thread.
  template <typename Visit>
  Status each(uint32_t disks, Visit visit) const {
    for (size_t disk = 0; disk < kMaxDisks; ++disk) {
      if ((disks >> disk & 1U) == 0) continue;
      for (const auto& [offset, run] : disks_[disk])
        REMUSD_TRY(visit({disk, run.kind, offset, run.bytes, 0}, run.data));
    }
    return {};
  }
  /// Whether a disk of the set was changed.
  bool touches(uint32_t disks) const;

 private:
  static constexpr uint64_t kRunCost = 96;  // a node of the map
  static constexpr size_t kBlockBytes = size_t{1} << 20;
  struct Run {
    uint64_t bytes = 0;
    ChangeKind kind = ChangeKind::write;
    std::byte* data = nullptr;  // of a write, in a block
  };
  using Runs = std::map<uint64_t, Run>;  // by offset, without overlaps

  bool fits(uint64_t bytes) const { return bytes <= kBlockBytes - block_used_; }
  void cut(Runs* runs, uint64_t offset);
  std::byte* keep(std::span<const std::byte> data);

  std::array<Runs, kMaxDisks> disks_;
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
  size_t block_used_ = kBlockBytes;  // of the last one
  uint64_t runs_ = 0, held_bytes_ = 0, written_bytes_ = 0;
  size_t taking_ = 0;      // disk that take() has come to
  uint64_t taken_to_ = 0;  // and how far
};

}  // namespace remusd::disk
