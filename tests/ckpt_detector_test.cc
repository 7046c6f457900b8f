// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <random>

#include "ckpt/detector.h"

namespace remusd::ckpt {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

const Time kStart{seconds(1000)};

TEST(Detector, IsAliveUntilStarted) {
  Detector detector(milliseconds(20), 5);
  EXPECT_TRUE(detector.tick(kStart));
  EXPECT_TRUE(detector.tick(kStart + seconds(60)));
  EXPECT_FALSE(detector.lost());
}

TEST(Detector, DeclaresLossAfterExactlyTheWindowOfSilence) {
  Detector detector(milliseconds(20), 5);
  detector.start(kStart);
  for (int i = 1; i < 5; ++i) EXPECT_TRUE(detector.tick(kStart + i * milliseconds(20))) << i;
  EXPECT_FALSE(detector.tick(kStart + milliseconds(100)));
  EXPECT_TRUE(detector.lost());
}

TEST(Detector, LossIsSticky) {
  Detector detector(milliseconds(20), 1);
  detector.start(kStart);
  EXPECT_FALSE(detector.tick(kStart + milliseconds(20)));
  detector.heard(kStart + milliseconds(21));
  EXPECT_FALSE(detector.tick(kStart + milliseconds(22)));
}

TEST(Detector, ASignOfLifeGivesAFullWindow) {
  Detector detector(milliseconds(20), 5);
  detector.start(kStart);
  Time now = kStart;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(detector.tick(now += milliseconds(20)));
  detector.heard(now + milliseconds(10));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(detector.tick(now += milliseconds(20))) << i;
  EXPECT_FALSE(detector.tick(now + milliseconds(20)));
}

TEST(Detector, OurOwnStallOf60SecondsGivesThePeerAFreshWindow) {
  Detector detector(milliseconds(20), 5);
  detector.start(kStart);
  Time now = kStart;
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(detector.tick(now += milliseconds(20)));
  now += seconds(60);
  EXPECT_TRUE(detector.tick(now));
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(detector.tick(now += milliseconds(20))) << i;
  EXPECT_FALSE(detector.tick(now + milliseconds(20)));
}

TEST(Detector, AModestDelayOfATickStillCounts) {
  Detector detector(milliseconds(20), 5);
  detector.start(kStart);
  EXPECT_TRUE(detector.tick(kStart + milliseconds(35)));
  EXPECT_TRUE(detector.tick(kStart + milliseconds(70)));
  EXPECT_FALSE(detector.tick(kStart + milliseconds(105)));
}

TEST(Detector, AHostThatIsAlwaysLateStillNoticesADeadPeer) {
  Detector detector(milliseconds(20), 5);
  detector.start(kStart);
  int ticks = 0;
  for (Time now = kStart; ticks < 1000; ++ticks)
    if (!detector.tick(now += milliseconds(60))) break;
  EXPECT_EQ(ticks + 1, Detector::kLateTicksFactor * 5);
}

TEST(Detector, NeverDeclaresAPeerLostThatSpeaksEveryInterval) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    std::mt19937_64 random(seed);
    Detector detector(milliseconds(20), 5);
    detector.start(kStart);
    Time now = kStart, next_sign = kStart;
    for (int step = 0; step < 200; ++step) {
      // Ticks with jitter and now and then a stall; what the peer said meanwhile is read before the tick.
      now += milliseconds(15 + random() % 20);
      if (random() % 16 == 0) now += milliseconds(random() % 5000);
      if (next_sign <= now) {
        detector.heard(now);
        next_sign = now + milliseconds(random() % 40);
      }
      ASSERT_TRUE(detector.tick(now)) << "seed " << seed << " step " << step;
    }
  }
}

}  // namespace
}  // namespace remusd::ckpt
