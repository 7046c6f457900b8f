// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>

#include "primary/staging.h"

namespace remusd::primary {
namespace {

constexpr size_t kChunks = 4;

std::unique_ptr<Staging> make() {
  return *Staging::make(kChunks * kChunkDataBytes, [] {});
}

TEST(Staging, RefusesABoundTooSmallToWork) {
  const auto staging = Staging::make(kChunkDataBytes, [] {});
  ASSERT_FALSE(staging.ok());
  EXPECT_EQ(staging.status().code(), Code::invalid);
}

TEST(Staging, HandsOutEveryChunkOnceAndCountsThem) {
  auto staging = make();
  bool waited = false;
  std::set<Chunk*> chunks;
  for (size_t i = 0; i < kChunks; ++i) {
    chunks.insert(staging->acquire_chunk(&waited));
    EXPECT_EQ(staging->used_bytes(), (i + 1) * kChunkDataBytes);
  }
  EXPECT_EQ(chunks.size(), kChunks);
  EXPECT_FALSE(waited);
  for (Chunk* chunk : chunks) staging->recycle(chunk);
  EXPECT_EQ(staging->used_bytes(), 0u);
}

TEST(Staging, ReusesTheNewestChunkFirst) {
  auto staging = make();
  bool waited = false;
  Chunk* chunk = staging->acquire_chunk(&waited);
  chunk->pages = 3;
  staging->recycle(chunk);
  EXPECT_EQ(staging->acquire_chunk(&waited), chunk);
  EXPECT_EQ(chunk->pages, 0u);
}

TEST(Staging, WaitsAtTheBoundAndSaysSo) {
  auto staging = make();
  bool waited = false;
  std::vector<Chunk*> taken;
  for (size_t i = 0; i < kChunks; ++i) taken.push_back(staging->acquire_chunk(&waited));
  ASSERT_FALSE(waited);
  std::thread ship([&] { staging->recycle(taken[0]); });
  Chunk* chunk = staging->acquire_chunk(&waited);
  ship.join();
  EXPECT_EQ(chunk, taken[0]);
}

TEST(Staging, AStopFreesAWaiter) {
  auto staging = make();
  bool waited = false;
  for (size_t i = 0; i < kChunks; ++i) (void)staging->acquire_chunk(&waited);
  std::thread stopper([&] { staging->stop(); });
  EXPECT_EQ(staging->acquire_chunk(&waited), nullptr);
  EXPECT_FALSE(staging->wait_drained(0));
  stopper.join();
}

TEST(Staging, HasNoMoreSlotsThanEpochsMayBeInFlight) {
  auto staging = make();
  bool waited = false;
  std::vector<EpochSlot*> slots;
  for (uint64_t i = 0; i < kMaxInFlight; ++i) slots.push_back(staging->acquire_slot(&waited));
  EXPECT_FALSE(waited);
  std::thread ship([&] { staging->recycle(slots[2]); });
  EXPECT_EQ(staging->acquire_slot(&waited), slots[2]);
  ship.join();
}

TEST(Staging, KeepsTheOrderBetweenTwoThreads) {
  std::atomic<int> wakes{0};
  auto staging = *Staging::make(kChunks * kChunkDataBytes, [&] { ++wakes; });
  constexpr uint64_t kCount = 5000;
  std::thread epoch([&] {
    bool waited = false;
    for (uint64_t i = 0; i < kCount; ++i) {
      Chunk* chunk = staging->acquire_chunk(&waited);
      chunk->epoch = i;
      chunk->numbers[0] = i * 3;
      chunk->pages = 1;
      staging->put({Item::Kind::chunk, chunk});
    }
    staging->put({Item::Kind::stopped});
  });
  uint64_t next = 0;
  while (true) {
    const auto item = staging->take();
    if (!item) {
      std::this_thread::yield();
      continue;
    }
    if (item->kind == Item::Kind::stopped) break;
    ASSERT_EQ(item->chunk->epoch, next);
    ASSERT_EQ(item->chunk->numbers[0], next * 3);
    ++next;
    staging->recycle(item->chunk);
  }
  epoch.join();
  EXPECT_EQ(next, kCount);
  EXPECT_EQ(wakes.load(), static_cast<int>(kCount + 1));
}

}  // namespace
}  // namespace remusd::primary
