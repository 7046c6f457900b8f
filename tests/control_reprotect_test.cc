// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "control/reprotect.h"

namespace remusd::control {
namespace {

using namespace std::chrono_literals;

const Time kStart{std::chrono::hours(1)};
const Status kAway{Code::unavailable, "nobody there"};
const Status kDiffers{Code::unsafe, "cpu feature avx2"};

Reprotect::Target target() {
  return {"b", {}};
}

Duration wait_after_failure(Reprotect* reprotect, Time now, const Status& why) {
  (void)reprotect->began();
  reprotect->failed(why, now);
  return reprotect->next_in(now);
}

TEST(Reprotect, NothingIsDueUntilProtectionWasLost) {
  Reprotect reprotect({});
  EXPECT_FALSE(reprotect.wanted());
  EXPECT_FALSE(reprotect.due(kStart + 24h));
  reprotect.want(target(), kAway, kStart);
  EXPECT_TRUE(reprotect.wanted());
  EXPECT_FALSE(reprotect.due(kStart + 999ms));
  EXPECT_TRUE(reprotect.due(kStart + 1s));
  EXPECT_EQ(reprotect.began().peer, "b");
  EXPECT_FALSE(reprotect.due(kStart + 24h)) << "one attempt at a time";
}

TEST(Reprotect, WaitsDoubleUpToTheLimit) {
  Reprotect reprotect({});
  reprotect.want(target(), kAway, kStart);
  for (const Duration wait : {1s, 2s, 4s, 8s, 16s, 30s, 30s}) {
    EXPECT_EQ(wait_after_failure(&reprotect, kStart, kAway), wait);
  }
  EXPECT_EQ(reprotect.attempts(), 7U);
  EXPECT_EQ(reprotect.last_error(), "nobody there");
}

TEST(Reprotect, WhatWaitingDoesNotHealIsTriedRarelyFromTheStart) {
  Reprotect reprotect({});
  reprotect.want(target(), kAway, kStart);
  EXPECT_EQ(wait_after_failure(&reprotect, kStart, kDiffers), 30s);
  EXPECT_TRUE(reprotect.wanted());
}

TEST(Reprotect, AProtectionThatHeldBeginsAnewOneThatDidNotGoesOn) {
  Reprotect reprotect({});
  reprotect.want(target(), kAway, kStart);
  EXPECT_EQ(wait_after_failure(&reprotect, kStart, kAway), 1s);
  (void)reprotect.began();
  reprotect.held(kStart);
  EXPECT_FALSE(reprotect.wanted());
  reprotect.want(target(), kAway, kStart + 10s);
  EXPECT_EQ(reprotect.next_in(kStart + 10s), 2s) << "it held for 10 s only";
  (void)reprotect.began();
  reprotect.held(kStart + 12s);
  reprotect.want(target(), kAway, kStart + 42s);
  EXPECT_EQ(reprotect.next_in(kStart + 42s), 1s);
  EXPECT_EQ(reprotect.attempts(), 0U);
}

TEST(Reprotect, AnOperatorsWordEndsIt) {
  Reprotect reprotect({});
  reprotect.want(target(), kAway, kStart);
  (void)reprotect.began();
  reprotect.clear();
  reprotect.failed(kAway, kStart);  // the attempt that was under way
  EXPECT_FALSE(reprotect.wanted());
  EXPECT_FALSE(reprotect.due(kStart + 24h));
}

TEST(Reprotect, SwitchedOffOnlyWhatAnEarlierDaemonHadIsTriedAndOnce) {
  Reprotect reprotect({.enabled = false});
  reprotect.want(target(), kAway, kStart);
  EXPECT_FALSE(reprotect.wanted());
  reprotect.adopt(target(), kStart);
  EXPECT_TRUE(reprotect.due(kStart));
  (void)reprotect.began();
  reprotect.failed(kAway, kStart);
  EXPECT_FALSE(reprotect.wanted());
}

}  // namespace
}  // namespace remusd::control
