// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Which changes of one disk may be made at the same time: those that do not overlap. Of those that do, one is
// made after the other, in the order in which they came, so that whoever makes the same changes in that
// order ends with the same bytes. Pure; not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace remusd::disk {

class ChangeOrder {
 public:
  /// A change that is not finished yet, owned by the caller.
  struct Entry {
    uint64_t begin = 0, end = 0;
    size_t waits_for = 0;  // earlier ones, not finished yet, that overlap it
    Entry* before = nullptr;
    Entry* after = nullptr;
  };

  bool empty() const { return last_ == nullptr; }

  /// Adds the last in order. True: it may be made at once. Looks at all that are not finished, which the
  /// server bounds.
  bool add(Entry* entry) {
    entry->waits_for = 0;
    for (const Entry* other = first_; other != nullptr; other = other->after)
      entry->waits_for += overlap(*other, *entry) ? 1 : 0;
    entry->before = last_;
    entry->after = nullptr;
    (last_ != nullptr ? last_->after : first_) = entry;
    last_ = entry;
    return entry->waits_for == 0;
  }

  /// Takes out one that is finished, and appends those that may be made now, in their order.
  void remove(Entry* entry, std::vector<Entry*>* ready) {
    (entry->before != nullptr ? entry->before->after : first_) = entry->after;
    (entry->after != nullptr ? entry->after->before : last_) = entry->before;
    for (Entry* other = entry->after; other != nullptr; other = other->after)
      if (overlap(*entry, *other) && --other->waits_for == 0) ready->push_back(other);
  }

 private:
  static bool overlap(const Entry& a, const Entry& b) { return a.begin < b.end && b.begin < a.end; }

  Entry* first_ = nullptr;
  Entry* last_ = nullptr;
};

}  // namespace remusd::disk
