// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// How often a link calls the kernel, and that what it spares is not missed.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>
#include <vector>

#include "ckpt/link.h"

namespace remusd::ckpt {
namespace {

using namespace std::chrono_literals;

constexpr Duration kPatience = 30s;

class LinkCallsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int fds[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    near_ = adopt(fds[0]);
    far_ = adopt(fds[1]);
  }
  static std::unique_ptr<Link> adopt(int fd) {
    auto link = Link::adopt(ScopedFd(fd), {});
    EXPECT_TRUE(link.ok()) << link.status().message();
    return std::move(*link);
  }

  std::unique_ptr<Link> near_, far_;
};

Status ignore(const FrameView&) {
  return {};
}

TEST_F(LinkCallsTest, AnAnswerTakesTwoSystemCalls) {
  constexpr uint64_t kRounds = 200;
  uint64_t answered = 0, calls = 0;
  std::thread backup([&] {
    const std::vector<std::byte> ack(16);
    while (answered < kRounds) {
      if (!far_->wait(Clock::now() + kPatience,
                      [&](const FrameView& frame) {
                        ++answered;
                        return far_->append(FrameType::ack, frame.header.epoch, ack);
                      })
               .ok())
        return;
    }
    calls = far_->stats().system_calls;
  });
  const std::vector<std::byte> commit(48);
  const Time deadline = Clock::now() + kPatience;
  uint64_t heard = 0;
  for (uint64_t epoch = 1; epoch <= kRounds; ++epoch) {
    ASSERT_TRUE(near_->append(FrameType::commit, epoch, commit).ok());
    while (heard < epoch && Clock::now() < deadline) {
      ASSERT_TRUE(near_
                      ->wait(deadline,
                             [&](const FrameView& frame) {
                               heard = frame.header.epoch;
                               return Status();
                             })
                      .ok());
    }
  }
  backup.join();
  EXPECT_EQ(heard, kRounds);
  EXPECT_EQ(answered, kRounds);
  // One sleeps, one sends and receives on; the first sleep has a few before it.
  EXPECT_LE(calls, 2 * kRounds + 10);
  EXPECT_LE(near_->stats().system_calls, 2 * kRounds + 10);
}

TEST_F(LinkCallsTest, WakingWhoIsAwakeCallsNothingAndCountsOnce) {
  ASSERT_TRUE(near_->wait(Clock::now(), ignore).ok());
  for (int i = 0; i < 1000; ++i) near_->wake();
  const Time start = Clock::now();
  EXPECT_TRUE(near_->wait(start + kPatience, ignore).ok());
  EXPECT_LT(Clock::now() - start, kPatience);
  const Time before = Clock::now();
  EXPECT_TRUE(near_->wait(before + 20ms, ignore).ok());
  EXPECT_GE(Clock::now() - before, 20ms);
}

TEST_F(LinkCallsTest, NoWakeIsLost) {
  constexpr int kWakers = 2, kEach = 5000;
  std::atomic<int> posted[kWakers] = {}, seen[kWakers] = {};
  std::atomic<bool> gone = false;
  std::vector<std::thread> wakers;
  for (int who = 0; who < kWakers; ++who) {
    wakers.emplace_back([&, who] {
      for (int i = 1; i <= kEach && !gone; ++i) {
        posted[who].store(i, std::memory_order_relaxed);  // What wake() orders must be enough.
        near_->wake();
        // The second waker runs free of the owner, so that wakes meet it at every point.
        while (who == 0 && !gone && seen[who] != i) std::this_thread::yield();
      }
    });
  }
  const Time deadline = Clock::now() + kPatience;
  bool all = false;
  while (!all && Clock::now() < deadline) {
    ASSERT_TRUE(near_->wait(deadline, ignore).ok());
    all = true;
    for (int who = 0; who < kWakers; ++who) {
      seen[who] = posted[who].load(std::memory_order_relaxed);
      all = all && seen[who] == kEach;
    }
  }
  EXPECT_TRUE(all);
  gone = true;
  for (std::thread& waker : wakers) waker.join();
}

TEST_F(LinkCallsTest, AReceiveThatWentWithAnAnswerIsNotForgotten) {
  // The far side answers and then does not wait for long: what came meanwhile is there at the next look.
  const std::vector<std::byte> body(100);
  ASSERT_TRUE(near_->append(FrameType::commit, 1, body).ok());
  ASSERT_TRUE(near_->wait(Clock::now(), ignore).ok());
  int frames = 0;
  const auto answer = [&](const FrameView& frame) {
    ++frames;
    return far_->append(FrameType::ack, frame.header.epoch, body);
  };
  ASSERT_TRUE(far_->wait(Clock::now() + kPatience, answer).ok());
  ASSERT_EQ(frames, 1);
  for (uint64_t epoch = 2; epoch <= 4; ++epoch)
    ASSERT_TRUE(near_->append(FrameType::commit, epoch, body).ok());
  while (!near_->drained()) ASSERT_TRUE(near_->wait(Clock::now(), ignore).ok());
  ASSERT_TRUE(far_->wait(Clock::now(), answer).ok());
  // The first look may have told of nothing but what was sent.
  if (frames == 1) {
    ASSERT_TRUE(far_->wait(Clock::now(), answer).ok());
  }
  EXPECT_EQ(frames, 4);
}

}  // namespace
}  // namespace remusd::ckpt
