// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/pages.h"

#include <algorithm>

namespace remusd {

void merge_pages(const PageSet& more, PageSet* pages) {
  const auto middle = static_cast<std::ptrdiff_t>(pages->size());
  pages->insert(pages->end(), more.begin(), more.end());
  std::inplace_merge(pages->begin(), pages->begin() + middle, pages->end(),
                     [](const PageRange& a, const PageRange& b) { return a.first < b.first; });
  size_t kept = 0;
  for (size_t i = 1; i < pages->size(); ++i) {
    PageRange& last = (*pages)[kept];
    const PageRange& next = (*pages)[i];
    if (next.first <= last.first + last.count) {
      last.count = std::max(last.first + last.count, next.first + next.count) - last.first;
    } else {
      (*pages)[++kept] = next;
    }
  }
  if (!pages->empty()) pages->resize(kept + 1);
}

void subtract_pages(const PageSet& pages, const PageSet& others, PageSet* left) {
  left->clear();
  auto other = others.begin();
  for (const PageRange& range : pages) {
    uint64_t at = range.first;
    const uint64_t end = range.first + range.count;
    while (other != others.end() && other->first + other->count <= at) ++other;
    for (auto cut = other; at < end; ++cut) {
      const uint64_t stop = cut == others.end() ? end : std::min(end, cut->first);
      if (stop > at) left->push_back({at, stop - at});
      if (cut == others.end()) break;
      at = std::max(at, cut->first + cut->count);
    }
  }
}

}  // namespace remusd
