// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "disk/promptness.h"

namespace remusd::disk {
namespace {

constexpr Duration kQuick = std::chrono::microseconds(20);

TEST(Promptness, IsDoubtedForAWhileAfterWhatTookLong) {
  Promptness promptness;
  const Time now = Clock::now();
  EXPECT_TRUE(promptness.expected(now));
  promptness.took(now, now + kQuick);
  EXPECT_TRUE(promptness.expected(now + kQuick));
  const Time ended = now + 2 * Promptness::kLong;
  promptness.took(now, ended);
  EXPECT_FALSE(promptness.expected(ended));
  EXPECT_FALSE(promptness.expected(ended + Promptness::kLeastDoubt - kQuick));
  EXPECT_TRUE(promptness.expected(ended + Promptness::kLeastDoubt));
}

TEST(Promptness, WhatIsAlwaysSlowIsTriedSeldom) {
  Promptness promptness;
  constexpr Duration kSlow = 10 * Promptness::kLong;
  Time now = Clock::now();
  const Time end = now + std::chrono::minutes(10);
  Duration lost{};
  int tries = 0;
  while (now < end) {
    if (!promptness.expected(now)) {
      now += Promptness::kLong;
      continue;
    }
    promptness.took(now, now + kSlow);
    now += kSlow;
    lost += kSlow;
    ++tries;
  }
  EXPECT_LT(tries, 70);
  EXPECT_LT(lost * 500, std::chrono::minutes(10));
}

TEST(Promptness, AQuickOneMakesItTrustedAgain) {
  Promptness promptness;
  Time now = Clock::now();
  for (int i = 0; i < 20; ++i) {
    promptness.took(now, now + Promptness::kLong);
    now += Promptness::kLong;
  }
  EXPECT_FALSE(promptness.expected(now + Promptness::kMostDoubt - kQuick));
  EXPECT_TRUE(promptness.expected(now + Promptness::kMostDoubt)) << "the while is bounded";
  now += Promptness::kMostDoubt;
  promptness.took(now, now + kQuick);
  promptness.took(now, now + Promptness::kLong);
  EXPECT_TRUE(promptness.expected(now + Promptness::kLong + Promptness::kLeastDoubt));
}

}  // namespace
}  // namespace remusd::disk
