// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "primary/pacer.h"
#include "primary/precopy.h"

namespace remusd::primary {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

const Time kBegun = Time(std::chrono::hours(1));
constexpr Duration kCommit = milliseconds(2);

PaceOptions every(Duration interval) {
  PaceOptions options;
  options.interval = interval;
  return options;
}

Duration at(const Pacer::Due& due) {
  return due.at - kBegun;
}

TEST(Pacer, KeepsAGridThatDoesNotDrift) {
  Pacer pacer(every(milliseconds(25)));
  // Each pause begins a little after its time and takes a while.
  for (int i = 0; i < 100; ++i) {
    const Time began = kBegun + milliseconds(25) * i + (i == 0 ? Duration{} : Duration(microseconds(70)));
    pacer.paused(began, began + milliseconds(2), 0);
    const Pacer::Due due = pacer.next(std::nullopt, kCommit);
    EXPECT_EQ(at(due), milliseconds(25) * (i + 1));
    EXPECT_EQ(due.reason, EpochReason::interval);
  }
}

TEST(Pacer, SkipsMissedPointsAndLetsTheGuestRunHalfAnInterval) {
  Pacer pacer(every(milliseconds(10)));
  pacer.paused(kBegun, kBegun + milliseconds(1), 0);
  pacer.paused(kBegun + milliseconds(10), kBegun + milliseconds(38), 0);
  const Pacer::Due due = pacer.next(std::nullopt, kCommit);
  EXPECT_EQ(at(due), milliseconds(43));
  EXPECT_EQ(due.reason, EpochReason::late);
}

TEST(Pacer, TheFirstEpochIsNotLateForItsBaseStream) {
  Pacer pacer(every(milliseconds(10)));
  pacer.paused(kBegun, kBegun + milliseconds(25), 0);
  EXPECT_EQ(pacer.next(std::nullopt, kCommit).reason, EpochReason::interval);
}

TEST(Pacer, LetsTheGuestRunForAQuarterOfAnIntervalThatThePauseNearlyFills) {
  Pacer pacer(every(milliseconds(4)));
  pacer.paused(kBegun, kBegun + microseconds(3900), 0);
  EXPECT_EQ(at(pacer.next(std::nullopt, kCommit)), microseconds(4900));
}

TEST(Pacer, OutputEndsAnEpochInTimeForItsTarget) {
  PaceOptions options = every(milliseconds(25));
  options.latency_target = milliseconds(6);
  Pacer pacer(options);
  pacer.paused(kBegun, kBegun + milliseconds(1), 0);
  const Pacer::Due due = pacer.next(kBegun + milliseconds(10), kCommit);
  EXPECT_EQ(at(due), milliseconds(14));  // 10 + 6 - 2
  EXPECT_EQ(due.reason, EpochReason::output);
  // A commit that takes longer than the target: at once, which is as good as can be.
  EXPECT_LE(at(pacer.next(kBegun + milliseconds(10), milliseconds(9))), milliseconds(10));
  // The regular end comes first.
  EXPECT_EQ(pacer.next(kBegun + milliseconds(24), kCommit).reason, EpochReason::interval);
}

TEST(Pacer, OutputDoesNotEndEpochsBelowTheirFloor) {
  PaceOptions options = every(milliseconds(25));
  options.latency_target = milliseconds(1);
  options.epoch_min = milliseconds(5);
  Pacer pacer(options);
  pacer.paused(kBegun, kBegun + milliseconds(1), 0);
  EXPECT_EQ(at(pacer.next(kBegun + milliseconds(1), kCommit)), milliseconds(5));
  // A pause that takes nearly as long leaves the guest half of the floor.
  pacer.paused(kBegun + milliseconds(5), kBegun + milliseconds(10), 0);
  EXPECT_EQ(at(pacer.next(kBegun + milliseconds(10), kCommit)), microseconds(12500));
}

TEST(Pacer, OutputIsIgnoredWithoutATarget) {
  Pacer pacer(every(milliseconds(25)));
  pacer.paused(kBegun, kBegun + milliseconds(1), 0);
  EXPECT_EQ(at(pacer.next(kBegun + milliseconds(2), kCommit)), milliseconds(25));
}

TEST(Pacer, AnEarlyEpochStartsTheGridAnew) {
  PaceOptions options = every(milliseconds(25));
  options.latency_target = milliseconds(3);
  Pacer pacer(options);
  pacer.paused(kBegun, kBegun + milliseconds(1), 0);
  pacer.paused(kBegun + milliseconds(8), kBegun + milliseconds(9), 0);
  EXPECT_EQ(at(pacer.next(std::nullopt, kCommit)), milliseconds(33));
}

/// Runs epochs as the pacer says; returns the share of time that pauses and faults took.
double slowdown(const PaceOptions& options, Duration pause, uint64_t pages, bool output, int* epochs) {
  Pacer pacer(options);
  Time now = kBegun;
  Duration cost{};
  *epochs = 0;
  while (now < kBegun + std::chrono::seconds(20)) {
    pacer.paused(now, now + pause, pages);
    cost += pause + Pacer::kFaultCost * static_cast<int64_t>(pages);
    ++*epochs;
    const Time ended = now + pause;
    const auto since = output ? std::optional<Time>(ended) : std::nullopt;
    now = std::max(ended, pacer.next(since, kCommit).at);
  }
  return to_seconds(cost) / to_seconds(now - kBegun);
}

TEST(Pacer, BoundsTheGuestsSlowDown) {
  for (const double bound : {0.05, 0.1, 0.5}) {
    for (const bool output : {false, true}) {
      PaceOptions options = every(milliseconds(5));
      options.latency_target = milliseconds(3);
      options.max_slowdown = bound;
      int epochs = 0;
      EXPECT_LE(slowdown(options, milliseconds(2), 1000, output, &epochs), bound * 1.02);
      EXPECT_GE(slowdown(options, milliseconds(2), 1000, output, &epochs), bound * 0.9) << "and uses it";
    }
  }
}

TEST(Pacer, SaysThatSlowDownPutAnEpochOff) {
  PaceOptions options = every(milliseconds(5));
  options.max_slowdown = 0.01;
  Pacer pacer(options);
  pacer.paused(kBegun, kBegun + milliseconds(3), 0);
  // 1 ms is owed beyond the burst of 2 ms; it is paid off at a hundredth.
  const Pacer::Due due = pacer.next(std::nullopt, kCommit);
  EXPECT_EQ(due.reason, EpochReason::slowdown);
  EXPECT_EQ(at(due), milliseconds(103));
}

TEST(Pacer, DoesNotPutAnEpochOffForEver) {
  PaceOptions options = every(milliseconds(5));
  options.max_slowdown = 0.001;
  Pacer pacer(options);
  pacer.paused(kBegun, kBegun + milliseconds(100), 0);
  EXPECT_EQ(at(pacer.next(std::nullopt, kCommit)), Pacer::kLongestInterval);
}

TEST(Pacer, AnUnboundGuestIsNotPutOff) {
  int epochs = 0;
  slowdown(every(milliseconds(5)), milliseconds(2), 1000, false, &epochs);
  EXPECT_NEAR(epochs, 4000, 5);
}

TEST(Precopy, IsForGuestsThatDirtyMuch) {
  Precopy precopy;
  precopy.note(0, Precopy::kWorthPages - 1);
  EXPECT_FALSE(precopy.wanted());
  precopy.note(0, Precopy::kWorthPages);
  EXPECT_TRUE(precopy.wanted());
  precopy.note(1000, 100);
  EXPECT_TRUE(precopy.wanted());
  precopy.note(100, 10);
  EXPECT_FALSE(precopy.wanted());
}

TEST(Precopy, RestsWhenItDidNotPay) {
  Precopy precopy;
  precopy.note(0, 2000);
  precopy.note(1000, 900);
  EXPECT_FALSE(precopy.wanted());
  for (int i = 0; i < Precopy::kRestEpochs; ++i) {
    precopy.note(0, 2000);
    EXPECT_FALSE(precopy.wanted()) << i;
  }
  precopy.note(0, 2000);
  EXPECT_TRUE(precopy.wanted());
}

}  // namespace
}  // namespace remusd::primary
