// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/residue.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace remusd::control {

// What is given up is freed by the caller's end of scope, after the lock.

guest::Residue Residues::remove(std::map<std::string, Entry>::iterator entry) {
  guest::Residue residue = std::move(entry->second.residue);
  if (changed_) changed_(entry->first, 0);
  entries_.erase(entry);
  return residue;
}

void Residues::put(const std::string& vm, guest::Residue residue, Time now) {
  if (keep_ == Duration::zero() || residue.empty()) return;
  guest::Residue older, oldest;
  const std::lock_guard lock(mutex_);
  if (const auto found = entries_.find(vm); found != entries_.end()) older = remove(found);
  if (entries_.size() >= kMaxResidues) {
    oldest = remove(std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
      return a.second.since < b.second.since;
    }));
  }
  const uint64_t bytes = residue.used_bytes();
  entries_[vm] = {std::move(residue), now};
  if (changed_) changed_(vm, bytes);
}

guest::Residue Residues::take(const std::string& vm) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(vm);
  return found == entries_.end() ? guest::Residue() : remove(found);
}

void Residues::expire(Time now) {
  std::vector<guest::Residue> old;
  const std::lock_guard lock(mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto at = entry++;
    if (now - at->second.since >= keep_) old.push_back(remove(at));
  }
}

uint64_t Residues::bytes(const std::string& vm) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(vm);
  return found == entries_.end() ? 0 : found->second.residue.used_bytes();
}

}  // namespace remusd::control
