// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Which pages the guest writes in epoch after epoch: its kernel's counters and stacks, the head of a log, a
// small working set. To notice a write costs the guest a fault, and a flush of translations in the pause; of
// these pages it is known beforehand. So they are copied without asking, for some epochs; then it is looked
// at whether they still are written, and if so they are taken for longer the next time. A page that was taken
// in vain costs a copy an epoch, which is less than a fault; what did not change is not sent (delta.h).
//
// Whether this is right never depends on it: a page that is taken is copied whether it was written or not,
// one that is not is noticed. Pure; the epoch thread owns it.
#pragma once

#include <cstdint>
#include <vector>

#include "ckpt/pages.h"

namespace remusd::primary {

class HotPages {
 public:
  /// So many pages at most; no page more once there are so many ranges of them (each cuts the scan in two).
  static constexpr size_t kMaxPages = 2048, kMaxRanges = 128;
  /// For how many epochs a page is taken: at first, and at most. It doubles each time the page is still hot.
  static constexpr uint32_t kFirstEpochs = 8, kMostEpochs = 64;

  HotPages();

  /// An epoch is over in which these pages were collected, those that were taken among them.
  void note(const PageSet& dirty);
  /// Which pages to take in the next epoch. Valid until the next note().
  const PageSet& taken() const { return taken_; }

 private:
  // taken for `left` epochs more, then awaited, then watched: whether it is written without being taken.
  enum class Phase : uint8_t { taken, rearmed, watched };
  struct Page {
    uint64_t number = 0;
    uint32_t left = 0, epochs = 0;
    Phase phase = Phase::taken;
  };
  static bool goes_on(Page* page, bool dirty);
  void add(const Page& page);

  std::vector<Page> pages_, next_;  // ascending
  PageSet before_, taken_;
};

}  // namespace remusd::primary
