// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "ckpt/shadow.h"

namespace remusd::ckpt {
namespace {

constexpr uint64_t kMemoryPages = 4096;

Shadow make(size_t slots) {
  auto shadow = Shadow::make(kMemoryPages, slots * kPageSize);
  EXPECT_TRUE(shadow.ok()) << shadow.status().message();
  return *std::move(shadow);
}

void put_number(std::byte* page, uint64_t number) {
  std::memcpy(page, &number, sizeof number);
  std::memcpy(page + kPageSize - sizeof number, &number, sizeof number);
}
bool holds_number(const std::byte* page, uint64_t number) {
  return std::memcmp(page, &number, sizeof number) == 0 &&
         std::memcmp(page + kPageSize - sizeof number, &number, sizeof number) == 0;
}

TEST(ShadowTest, APageIsFoundWithItsContentUntilItMakesRoom) {
  Shadow shadow = make(3);
  EXPECT_EQ(shadow.find(7), nullptr);
  for (const uint64_t page : {7u, 4095u, 0u}) put_number(shadow.insert(page), page);
  for (const uint64_t page : {7u, 4095u, 0u}) {
    ASSERT_NE(shadow.find(page), nullptr);
    EXPECT_TRUE(holds_number(shadow.find(page), page));
  }
  for (int i = 0; i < 9; ++i) EXPECT_EQ(shadow.insert(9), nullptr) << "all three were asked for";
  EXPECT_EQ(shadow.evicted(), 0u);
  put_number(shadow.insert(9), 9);
  EXPECT_EQ(shadow.evicted(), 1u);
  EXPECT_EQ(shadow.pages(), 3u);
  size_t left = 0;
  for (const uint64_t page : {7u, 4095u, 0u}) left += shadow.find(page) != nullptr ? 1 : 0;
  EXPECT_EQ(left, 2u);
  EXPECT_TRUE(holds_number(shadow.find(9), 9));
}

TEST(ShadowTest, WhatIsAskedForAgainAndAgainOutlivesWhatIsWrittenOnce) {
  Shadow shadow = make(64);
  for (uint64_t page = 0; page < 40; ++page) ASSERT_NE(shadow.insert(page), nullptr);
  for (uint64_t cold = 100; cold < 4000; cold += 8) {
    for (uint64_t page = 0; page < 40; ++page)
      ASSERT_NE(shadow.find(page), nullptr) << page << " at " << cold;
    for (uint64_t page = cold; page < cold + 8; ++page) (void)shadow.insert(page);
  }
  EXPECT_GT(shadow.evicted(), 100u) << "those came and went in the slots that the others left";
}

/// `rounds` times over `count` pages in order, as epochs go over a working set; how many were found.
uint64_t hits(Shadow* shadow, uint64_t first, uint64_t count, int rounds) {
  uint64_t found = 0;
  for (int round = 0; round < rounds; ++round) {
    for (uint64_t page = first; page < first + count; ++page) {
      if (shadow->find(page) != nullptr) {
        ++found;
      } else {
        (void)shadow->insert(page);
      }
    }
  }
  return found;
}

TEST(ShadowTest, AWorkingSetThatIsLargerDoesNotChaseItselfThroughTheShadow) {
  Shadow shadow = make(100);
  for (const uint64_t count : {125u, 200u, 300u}) {
    Shadow fresh = make(100);
    EXPECT_GT(hits(&fresh, 0, count, 100), 100 * 90u) << count;
  }
  (void)hits(&shadow, 0, 125, 100);
  // A new one is taken in within a few rounds.
  (void)hits(&shadow, 2000, 100, 6);
  EXPECT_EQ(hits(&shadow, 2000, 100, 1), 100u);
}

TEST(ShadowTest, ContentsNeverMixAndTheBoundHolds) {
  for (const size_t slots : {1u, 2u, 17u, 500u}) {
    Shadow shadow = make(slots);
    std::mt19937 random(static_cast<unsigned>(slots));
    std::map<uint64_t, uint64_t> written;  // the newest number put into each page
    uint64_t found = 0;
    for (uint64_t number = 1; number < 20'000; ++number) {
      const uint64_t page = random() % (random() % 4 == 0 ? kMemoryPages : 2 * slots);
      std::byte* content = shadow.find(page);
      if (content != nullptr) {
        ++found;
        ASSERT_TRUE(holds_number(content, written[page]));
      } else {
        content = shadow.insert(page);
      }
      if (content != nullptr) put_number(content, number);
      written[page] = number;
      ASSERT_LE(shadow.pages(), slots);
      ASSERT_LE(shadow.used_bytes(), shadow.limit_bytes());
    }
    EXPECT_GT(found, 100u);
    EXPECT_GT(shadow.evicted(), 100u);
    EXPECT_EQ(shadow.used_bytes(), shadow.limit_bytes()) << "every slot is in use";
    EXPECT_EQ(shadow.limit_bytes(), slots * (kPageSize + 16) + kMemoryPages * 4);
  }
}

TEST(ShadowTest, NoMoreSlotsThanPages) {
  const auto shadow = Shadow::make(10, size_t{1} << 30);
  ASSERT_TRUE(shadow.ok());
  EXPECT_EQ(shadow->limit_bytes(), 10 * (kPageSize + 16) + 40);
}

}  // namespace
}  // namespace remusd::ckpt
