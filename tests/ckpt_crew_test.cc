// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "ckpt/crew.h"

namespace remusd {
namespace {

TEST(Crew, DoesEachPartOnceAndReturnsWhenAllAreDone) {
  for (const size_t helpers : {0u, 1u, 3u}) {
    Crew crew(helpers, "crew");
    // Many short jobs: a helper that wakes late must find nothing of a job that is over.
    for (size_t round = 0; round < 3000; ++round) {
      const size_t parts = round % 7;
      std::array<std::atomic<int>, 7> times{};
      crew.run(parts, [&](size_t part) { ++times[part]; });
      for (size_t part = 0; part < times.size(); ++part)
        ASSERT_EQ(times[part], part < parts ? 1 : 0) << helpers << " helpers, round " << round;
    }
  }
}

TEST(Crew, HelpersTakeTheirShare) {
  Crew crew(1, "crew");
  // Each part waits for the other: that ends only if two threads are at it.
  std::atomic<int> arrived = 0;
  std::array<std::thread::id, 2> who;
  crew.run(2, [&](size_t part) {
    who[part] = std::this_thread::get_id();
    ++arrived;
    arrived.notify_all();
    while (arrived < 2) arrived.wait(1);
  });
  EXPECT_NE(who[0], who[1]);
}

TEST(Crew, WhatAPartWroteIsSeenByTheCaller) {
  Crew crew(2, "crew");
  std::vector<uint64_t> sums(64);
  for (uint64_t round = 1; round <= 200; ++round) {
    crew.run(sums.size(), [&](size_t part) { sums[part] += round; });
    for (const uint64_t sum : sums) ASSERT_EQ(sum, round * (round + 1) / 2);
  }
}

TEST(Crew, EndsWithoutEverHavingHadAJob) {
  Crew crew(4, "crew");
}

}  // namespace
}  // namespace remusd
