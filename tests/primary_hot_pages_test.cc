// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>

#include "primary/hot_pages.h"

namespace remusd::primary {
namespace {

constexpr PageRange kHot{7, 1};

/// One epoch of a guest that writes `written`: what is taken is collected with it.
void epoch(HotPages& hot, const PageSet& written) {
  PageSet collected = written;
  merge_pages(hot.taken(), &collected);
  hot.note(collected);
}

TEST(HotPages, APageOfTwoEpochsInARowIsTaken) {
  HotPages hot;
  epoch(hot, {{3, 1}, kHot});
  EXPECT_TRUE(hot.taken().empty());
  epoch(hot, {kHot, {100, 5}});
  EXPECT_EQ(hot.taken(), PageSet{kHot});
  epoch(hot, {{103, 4}});
  EXPECT_EQ(hot.taken(), (PageSet{kHot, {103, 2}}));
}

/// For how many epochs on end `page` is taken now, if the guest writes it or not.
uint32_t taken_for(HotPages& hot, const PageSet& written) {
  uint32_t epochs = 0;
  for (; !hot.taken().empty(); ++epochs) epoch(hot, written);
  return epochs;
}

TEST(HotPages, IsLookedAtAgainAndTakenForLongerIfStillHot) {
  HotPages hot;
  for (int i = 0; i < 2; ++i) epoch(hot, {kHot});
  for (uint32_t epochs = HotPages::kFirstEpochs; epochs < 4 * HotPages::kMostEpochs; epochs *= 2) {
    EXPECT_EQ(taken_for(hot, {kHot}), std::min(epochs, HotPages::kMostEpochs));
    epoch(hot, {kHot});  // reported because it was written while it was taken: that says nothing of now
    EXPECT_TRUE(hot.taken().empty());
    epoch(hot, {kHot});  // written although it was armed
  }
}

TEST(HotPages, APageThatWentColdIsTakenNoMore) {
  HotPages hot;
  for (int i = 0; i < 2; ++i) epoch(hot, {kHot});
  EXPECT_EQ(taken_for(hot, {}), HotPages::kFirstEpochs);
  epoch(hot, {});
  epoch(hot, {kHot});
  EXPECT_TRUE(hot.taken().empty());
  // Or cold when it is watched.
  epoch(hot, {kHot});
  EXPECT_EQ(taken_for(hot, {kHot}), HotPages::kFirstEpochs);
  epoch(hot, {kHot});
  epoch(hot, {});
  epoch(hot, {kHot});
  EXPECT_TRUE(hot.taken().empty());
}

TEST(HotPages, TakesNoMoreThanItMay) {
  HotPages hot;
  for (int i = 0; i < 3; ++i) epoch(hot, {{0, 2 * HotPages::kMaxPages}});
  EXPECT_EQ(hot.taken(), (PageSet{{0, HotPages::kMaxPages}}));
  HotPages scattered;
  PageSet written;
  for (uint64_t i = 0; i < 2 * HotPages::kMaxRanges; ++i) written.push_back({2 * i, 1});
  for (int i = 0; i < 3; ++i) epoch(scattered, written);
  EXPECT_EQ(scattered.taken().size(), HotPages::kMaxRanges);
}

}  // namespace
}  // namespace remusd::primary
