// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <random>

#include "netbuf/epoch_queue.h"

namespace remusd::netbuf {
namespace {

std::vector<std::byte> frame(size_t bytes, int mark = 0) {
  return {bytes, static_cast<std::byte>(mark)};
}

EpochQueue holding_queue(size_t bytes = 1000, size_t frames = 100) {
  EpochQueue queue(bytes, frames);
  queue.set_passing(false);
  return queue;
}

TEST(EpochQueueTest, AFrameLeavesOnlyOnceItsEpochIsReleased) {
  EpochQueue queue = holding_queue();
  ASSERT_TRUE(queue.push(3, {}, frame(10)));
  EXPECT_EQ(queue.front_released(), nullptr);
  queue.release_through(2);
  EXPECT_EQ(queue.front_released(), nullptr);
  queue.release_through(3);
  ASSERT_NE(queue.front_released(), nullptr);
  queue.pop();
  EXPECT_EQ(queue.bytes(), 0u);
}

TEST(EpochQueueTest, ARepeatedOrOlderReleaseTakesNothingBack) {
  EpochQueue queue = holding_queue();
  queue.release_through(5);
  queue.release_through(2);
  EXPECT_EQ(queue.released(), 5u);
}

TEST(EpochQueueTest, FramesLeaveInTheOrderTheyCame) {
  EpochQueue queue = holding_queue();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(queue.push(static_cast<uint64_t>(i / 3), {}, frame(1, i)));
  queue.release_through(9);
  for (int i = 0; i < 10; ++i) {
    ASSERT_NE(queue.front_released(), nullptr);
    EXPECT_EQ(queue.front_released()->bytes.front(), static_cast<std::byte>(i));
    queue.pop();
  }
}

TEST(EpochQueueTest, AtEitherBoundAFrameIsRefusedAndNothingIsLost) {
  EpochQueue bytes = holding_queue(25, 100);
  EXPECT_TRUE(bytes.push(1, {}, frame(10)));
  EXPECT_TRUE(bytes.push(1, {}, frame(10)));
  EXPECT_FALSE(bytes.push(1, {}, frame(10)));
  EXPECT_EQ(bytes.bytes(), 20u);
  EpochQueue frames = holding_queue(1000, 2);
  EXPECT_TRUE(frames.push(1, {}, frame(1)));
  EXPECT_TRUE(frames.push(1, {}, frame(1)));
  EXPECT_FALSE(frames.push(1, {}, frame(1)));
}

TEST(EpochQueueTest, PassingLetsEverythingOutAndHoldingStopsAgain) {
  EpochQueue queue = holding_queue();
  ASSERT_TRUE(queue.push(9, {}, frame(1)));
  queue.set_passing(true);
  EXPECT_NE(queue.front_released(), nullptr);
  queue.set_passing(false);
  EXPECT_EQ(queue.front_released(), nullptr);
}

TEST(EpochQueueTest, DiscardDropsWhatIsHeldAndCountsIt) {
  EpochQueue queue = holding_queue();
  ASSERT_TRUE(queue.push(1, {}, frame(5)));
  ASSERT_TRUE(queue.push(1, {}, frame(5)));
  EXPECT_EQ(queue.discard(), 2u);
  EXPECT_EQ(queue.bytes(), 0u);
}

TEST(EpochQueueDeathTest, AnEpochThatGoesBackIsABug) {
  EpochQueue queue = holding_queue();
  ASSERT_TRUE(queue.push(4, {}, frame(1)));
  EXPECT_DEATH({ [[maybe_unused]] const bool taken = queue.push(3, {}, frame(1)); }, "epochs never go back");
}

// Random pushes, releases and pops against a plain model: never early, never lost, never reordered.
TEST(EpochQueuePropertyTest, NothingLeavesEarlyIsLostOrReordered) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    EpochQueue queue = holding_queue(200, 20);
    uint64_t open = 1;
    uint64_t released = 0;
    uint8_t next_in = 0;
    uint8_t next_out = 0;
    for (int step = 0; step < 300; ++step) {
      switch (random() % 4) {
        case 0:
          if (queue.push(open, {}, frame(1 + random() % 40, next_in))) ++next_in;
          break;
        case 1:
          ++open;
          break;
        case 2:
          released = std::min(open - 1, released + random() % 2);
          queue.release_through(released);
          break;
        default:
          while (const EpochQueue::Frame* front = queue.front_released()) {
            ASSERT_LE(front->epoch, released) << "seed " << seed;
            ASSERT_EQ(front->bytes.front(), static_cast<std::byte>(next_out)) << "seed " << seed;
            ++next_out;
            queue.pop();
          }
      }
      ASSERT_LE(queue.bytes(), 200u);
    }
    queue.release_through(open);
    while (queue.front_released() != nullptr) {
      ++next_out;
      queue.pop();
    }
    EXPECT_EQ(next_in, next_out) << "seed " << seed;
  }
}

}  // namespace
}  // namespace remusd::netbuf
