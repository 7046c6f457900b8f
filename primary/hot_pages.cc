// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/hot_pages.h"

#include <algorithm>

namespace remusd::primary {

HotPages::HotPages() {
  for (std::vector<Page>* pages : {&pages_, &next_}) pages->reserve(kMaxPages);
  taken_.reserve(kMaxPages);
}

/// What becomes of a page that was in the list in an epoch in which it was collected, or was not.
bool HotPages::goes_on(Page* page, bool dirty) {
  if (page->phase == Phase::taken) {
    if (--page->left == 0) page->phase = Phase::rearmed;
    return true;
  }
  if (!dirty) return false;
  if (page->phase == Phase::rearmed) {
    // It was written while it was taken, at any time. Armed it is only since this collection.
    page->phase = Phase::watched;
    return true;
  }
  page->epochs = std::min(2 * page->epochs, kMostEpochs);
  page->left = page->epochs;
  page->phase = Phase::taken;
  return true;
}

void HotPages::add(const Page& page) {
  next_.push_back(page);
  if (page.phase != Phase::taken) return;
  if (!taken_.empty() && taken_.back().first + taken_.back().count == page.number) {
    ++taken_.back().count;
  } else {
    taken_.push_back({page.number, 1});
  }
}

void HotPages::note(const PageSet& dirty) {
  next_.clear();
  taken_.clear();
  auto known = pages_.begin();
  auto before = before_.begin();
  size_t room = kMaxPages - pages_.size();
  // Those of the list that come before page `limit`, none of which is dirty.
  const auto pass_to = [&](uint64_t limit) {
    for (; known != pages_.end() && known->number < limit; ++known) {
      if (goes_on(&*known, false)) add(*known);
    }
  };
  for (const PageRange& range : dirty) {
    for (uint64_t page = range.first; page < range.first + range.count; ++page) {
      pass_to(page);
      if (known != pages_.end() && known->number == page) {
        if (goes_on(&*known, true)) add(*known);
        ++known;
        continue;
      }
      while (before != before_.end() && before->first + before->count <= page) ++before;
      if (before == before_.end() || page < before->first) continue;
      if (room == 0 || taken_.size() >= kMaxRanges) continue;
      --room;
      add({page, kFirstEpochs, kFirstEpochs, Phase::taken});
    }
  }
  pass_to(UINT64_MAX);
  pages_.swap(next_);
  before_.assign(dirty.begin(), dirty.end());
}

}  // namespace remusd::primary
