// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The newest kept content of every byte of a guest's disks that are held: what reads see over the files.
// It points into the logs that keep the bytes, and knows of each run which log it is of: when a log's runs
// have reached the files, take_out() removes those of them that nothing newer has covered.
//
// Pure and not thread-safe; tap.h guards it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>

#include "disk/kept_run.h"

namespace remusd::disk {

class Overlay {
 public:
  /// `data` of a write stays where it is until its log is taken out. `log` never falls from call to call.
  void add(const Change& change, const std::byte* data, uint64_t log);
  /// What log `log` or an earlier one has left of the run.
  void take_out(size_t disk, uint64_t offset, uint64_t bytes, uint64_t log);
  /// Null: nothing is kept of it. `content`: with the bytes.
  std::unique_ptr<KeptRun> look(size_t disk, uint64_t offset, uint64_t bytes, bool content) const;
  uint64_t memory_bytes() const { return runs_ * kRunCost; }
  /// How much memory_bytes() may rise by one add().
  static constexpr uint64_t kMostCost = 2 * 112;

 private:
  static constexpr uint64_t kRunCost = 112;  // a node of the map
  struct Run {
    uint64_t bytes = 0;
    ChangeKind kind = ChangeKind::write;
    const std::byte* data = nullptr;
    uint64_t log = 0;
  };
  using Runs = std::map<uint64_t, Run>;  // by offset, without overlaps

  void cut(Runs* runs, uint64_t offset);

  std::array<Runs, kMaxDisks> disks_;
  uint64_t runs_ = 0;
};

}  // namespace remusd::disk
