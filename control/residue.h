// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The memory images that guests and replicas left on this node: one for each guest, the newest, until it is
// used, too old, or of no use because the guest runs here. Losing one costs the next first sync its speed and
// nothing else.
//
// Bounds: an image takes no more than its guest's memory; at most kMaxResidues, beyond which the oldest goes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "ckpt/clock.h"
#include "guest/residue.h"

namespace remusd::control {

inline constexpr size_t kMaxResidues = 64;

/// Thread-safe. Giving an image up may take a while: a second for tens of GiB.
class Residues {
 public:
  /// `keep`: how long; zero: nothing is kept. `changed` hears how much there is for a guest now, under the
  /// lock.
  using Changed = std::function<void(const std::string& vm, uint64_t bytes)>;
  Residues(Duration keep, Changed changed) : keep_(keep), changed_(std::move(changed)) {}

  void put(const std::string& vm, guest::Residue residue, Time now);
  /// Empty when there is none.
  guest::Residue take(const std::string& vm);
  void drop(const std::string& vm) { (void)take(vm); }
  /// Gives up what is too old.
  void expire(Time now);
  uint64_t bytes(const std::string& vm) const;

 private:
  struct Entry {
    guest::Residue residue;
    Time since;
  };
  guest::Residue remove(std::map<std::string, Entry>::iterator entry);

  const Duration keep_;
  const Changed changed_;
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;  // guarded by mutex_
};

}  // namespace remusd::control
