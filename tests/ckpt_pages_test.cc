// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "ckpt/pages.h"

namespace remusd {
namespace {

TEST(Pages, MergedSetsAreAscendingAndDoNotOverlap) {
  PageSet pages{{1, 2}, {10, 5}, {30, 1}};
  merge_pages({{0, 1}, {3, 1}, {12, 10}, {40, 2}}, &pages);
  EXPECT_EQ(pages, (PageSet{{0, 4}, {10, 12}, {30, 1}, {40, 2}}));
  PageSet none;
  merge_pages({}, &none);
  EXPECT_TRUE(none.empty());
}

TEST(Pages, WhatIsInOneSetOnlyIsLeft) {
  const PageSet pages{{1, 4}, {10, 10}, {30, 1}};
  const auto without = [&](const PageSet& others) {
    PageSet left{{99, 1}};
    subtract_pages(pages, others, &left);
    return left;
  };
  EXPECT_EQ(without({}), pages);
  EXPECT_EQ(without({{0, 1}, {5, 5}, {31, 7}}), pages);
  EXPECT_EQ(without({{0, 100}}), PageSet{});
  EXPECT_EQ(without({{2, 1}, {4, 8}, {14, 1}, {19, 12}}), (PageSet{{1, 1}, {3, 1}, {12, 2}, {15, 4}}));
}

}  // namespace
}  // namespace remusd
