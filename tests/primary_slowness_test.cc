// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "primary/slowness.h"

namespace remusd::primary {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr Time kOutset{std::chrono::hours(1)};
constexpr SlowOptions kUnprotect{.unprotect = true};

EpochSample sample(Duration commit, Duration interval = 25ms, EpochReason reason = EpochReason::interval) {
  EpochSample sample;
  sample.commit = commit;
  sample.interval = interval;
  sample.reason = reason;
  return sample;
}

TEST(Slowness, AQuickBackupIsNeverSlow) {
  Slowness slowness(kUnprotect);
  Time now = kOutset;
  for (int i = 0; i < 1000; ++i, now += 25ms) {
    slowness.acknowledged(sample(5ms), now);
    EXPECT_TRUE(slowness.tick(now - 20ms, now).ok());
    EXPECT_FALSE(slowness.slow());
  }
}

TEST(Slowness, LateCommitsForTheWholeTimeEndProtectionWithTheWorstOfThem) {
  Slowness slowness(kUnprotect);
  Time now = kOutset;
  for (; now < kOutset + 5s; now += 100ms) {
    slowness.acknowledged(sample(now == kOutset + 1s ? 900ms : 600ms), now);
    EXPECT_TRUE(slowness.tick(std::nullopt, now).ok());
    EXPECT_TRUE(slowness.slow());
  }
  const Status ended = slowness.tick(std::nullopt, now);
  EXPECT_EQ(ended.code(), Code::timed_out);
  EXPECT_THAT(ended.message(), HasSubstr("a commit took 900 ms"));
  EXPECT_THAT(ended.message(), HasSubstr("above 500 ms"));
}

TEST(Slowness, OneGoodEpochBeginsTheTimeAnew) {
  Slowness slowness(kUnprotect);
  slowness.acknowledged(sample(600ms), kOutset);
  slowness.acknowledged(sample(5ms), kOutset + 4900ms);
  slowness.acknowledged(sample(600ms), kOutset + 5s);
  EXPECT_TRUE(slowness.tick(std::nullopt, kOutset + 9900ms).ok());
  EXPECT_FALSE(slowness.tick(std::nullopt, kOutset + 10s).ok());
}

TEST(Slowness, EpochsThatWaitForTheBackupAreSlowThoseThatAreMadeRareAreNot) {
  Slowness slowness(kUnprotect);
  slowness.acknowledged(sample(5ms, 1s, EpochReason::slowdown), kOutset);
  slowness.acknowledged(sample(5ms, 1s, EpochReason::interval), kOutset);
  EXPECT_FALSE(slowness.slow());
  slowness.acknowledged(sample(5ms, 501ms, EpochReason::staging), kOutset);
  EXPECT_TRUE(slowness.slow());
}

TEST(Slowness, SilenceCountsFromWhenItIsNoticedSoThatAStallOfOursDoesNot) {
  Slowness slowness(kUnprotect);
  EXPECT_TRUE(slowness.tick(kOutset, kOutset + 60s).ok()) << "we did not look for a minute";
  slowness.acknowledged(sample(5ms), kOutset + 60s);
  EXPECT_FALSE(slowness.slow());
  Time now = kOutset + 61s;
  for (; now <= kOutset + 61s + 540ms; now += 20ms) EXPECT_TRUE(slowness.tick(kOutset + 61s, now).ok());
  EXPECT_TRUE(slowness.slow());
  const Status ended = slowness.tick(kOutset + 61s, now + 5s);
  EXPECT_THAT(ended.message(), HasSubstr("no acknowledgement came"));
}

TEST(Slowness, WithoutThePolicyItIsToldAndNothingMore) {
  Slowness slowness({});
  slowness.acknowledged(sample(600ms), kOutset);
  EXPECT_TRUE(slowness.tick(std::nullopt, kOutset + 1h).ok());
  EXPECT_TRUE(slowness.slow());
}

}  // namespace
}  // namespace remusd::primary
