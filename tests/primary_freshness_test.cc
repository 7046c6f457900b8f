// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "primary/freshness.h"

namespace remusd::primary {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kStall = milliseconds(50);
const Time kStart = Time{} + seconds(1000);

TEST(Freshness, HoldsWhileWeRun) {
  Freshness freshness(kStall);
  for (int i = 0; i < 100; ++i) freshness.awake(kStart + i * kStall);
  EXPECT_TRUE(freshness.fresh());
  EXPECT_FALSE(freshness.echoed(kStart)) << "nothing was in doubt";
}

TEST(Freshness, AfterAStallOnlyWhatTheBackupSaidSinceCounts) {
  Freshness freshness(kStall);
  freshness.awake(kStart);
  const Time woke = kStart + seconds(60);
  freshness.awake(woke);
  EXPECT_FALSE(freshness.fresh());
  freshness.awake(woke + milliseconds(1));  // Time alone does not heal it.
  EXPECT_FALSE(freshness.echoed(kStart));
  EXPECT_FALSE(freshness.echoed(woke - milliseconds(1))) << "it waited in our socket";
  EXPECT_FALSE(freshness.fresh());
  EXPECT_TRUE(freshness.echoed(woke + milliseconds(2)));
  EXPECT_TRUE(freshness.fresh());
}

TEST(Freshness, OutputIsGoodForNoLongerThanAStall) {
  Freshness freshness(kStall);
  freshness.awake(kStart);
  freshness.awake(kStart + milliseconds(1));
  EXPECT_EQ(freshness.good_until(), kStart + milliseconds(1) + kStall);
}

TEST(Freshness, ASecondStallCountsFromItsOwnEnd) {
  Freshness freshness(kStall);
  freshness.awake(kStart);
  freshness.awake(kStart + seconds(1));
  freshness.awake(kStart + seconds(2));
  EXPECT_FALSE(freshness.echoed(kStart + milliseconds(1500)));
  EXPECT_TRUE(freshness.echoed(kStart + seconds(2)));
}

}  // namespace
}  // namespace remusd::primary
