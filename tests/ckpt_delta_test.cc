// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>

#include "ckpt/delta.h"
#include "ckpt/records.h"

namespace remusd::ckpt {
namespace {

using Random = std::mt19937_64;

Bytes random_page(Random& random) {
  Bytes page(kPageSize);
  for (size_t at = 0; at < kPageSize; at += 8) {
    const uint64_t word = random();
    std::memcpy(page.data() + at, &word, sizeof word);
  }
  return page;
}

void change_word(Bytes* page, size_t word, uint64_t by) {
  uint64_t value = 0;
  std::memcpy(&value, page->data() + word * 8, sizeof value);
  value ^= by;
  std::memcpy(page->data() + word * 8, &value, sizeof value);
}

/// What a path made of (base, page); the room behind the payload is guarded.
struct Encoded {
  size_t size = 0;
  Bytes payload, base;
};

Encoded encoded(const DeltaPath& path, const Bytes& base, const Bytes& page, size_t most = kMaxDeltaBytes) {
  constexpr size_t kGuard = 256;
  // Odd addresses: nothing may rely on alignment.
  Bytes out(1 + kDeltaRoomBytes + kGuard, std::byte{0xa5}), was(1 + kPageSize + kGuard, std::byte{0xa5});
  std::memcpy(was.data() + 1, base.data(), kPageSize);
  Encoded result;
  result.size = path.encode(was.data() + 1, page.data(), most, out.data() + 1);
  for (size_t at = 1 + kDeltaRoomBytes; at < out.size(); ++at)
    EXPECT_EQ(out[at], std::byte{0xa5}) << path.name;
  for (size_t at = 1 + kPageSize; at < was.size(); ++at) EXPECT_EQ(was[at], std::byte{0xa5}) << path.name;
  if (result.size <= most)
    result.payload.assign(out.begin() + 1, out.begin() + 1 + static_cast<ptrdiff_t>(result.size));
  result.base.assign(was.begin() + 1, was.begin() + 1 + kPageSize);
  return result;
}

void apply(const DeltaPath& path, const Bytes& delta, Bytes* page) {
  const Bytes exact(delta);  // so that a sanitizer sees a read past its end
  path.apply(exact.data(), page->data());
}

/// Every path gives the same bytes, brings the base up to date, and takes every other's delta back.
void expect_paths_agree(const Bytes& base, const Bytes& page) {
  const DeltaPath& portable = delta_paths().back();
  const Encoded expected = encoded(portable, base, page);
  EXPECT_EQ(expected.size == 0, base == page);
  for (const DeltaPath& path : delta_paths()) {
    const Encoded ours = encoded(path, base, page);
    ASSERT_EQ(ours.size, expected.size) << path.name;
    ASSERT_EQ(ours.payload, expected.payload) << path.name;
    ASSERT_EQ(ours.base, page) << path.name;
    if (ours.size == 0) continue;
    ASSERT_TRUE(check_delta(ours.payload)) << path.name;
    Bytes applied = base;
    apply(path, ours.payload, &applied);
    ASSERT_EQ(applied, page) << path.name;
    // Below the least size that it takes nothing is packed, and the base is up to date all the same.
    const Encoded kept = encoded(path, base, page, ours.size - 1);
    ASSERT_EQ(kept.size, expected.size) << path.name;
    ASSERT_EQ(kept.base, page) << path.name;
  }
}

TEST(DeltaTest, ThePortablePathIsAlwaysThereAndThePathInUseIsTheFirst) {
  ASSERT_FALSE(delta_paths().empty());
  EXPECT_STREQ(delta_paths().back().name, "portable");
  std::string names;
  for (const DeltaPath& path : delta_paths()) names += std::string(path.name) + " ";
  RecordProperty("paths", names);
}

TEST(DeltaTest, AllPathsAgreeOnEveryNumberOfChangedWords) {
  Random random(1);
  for (size_t words = 0; words <= kPageSize / 8; words += words < 70 ? 1 : 13) {
    const Bytes base = random_page(random);
    Bytes page = base;
    for (size_t i = 0; i < words; ++i) change_word(&page, random() % (kPageSize / 8), random());
    ASSERT_NO_FATAL_FAILURE(expect_paths_agree(base, page)) << words;
  }
  ASSERT_NO_FATAL_FAILURE(expect_paths_agree(random_page(random), random_page(random)));
  ASSERT_NO_FATAL_FAILURE(expect_paths_agree(Bytes(kPageSize), random_page(random)));
  ASSERT_NO_FATAL_FAILURE(expect_paths_agree(random_page(random), Bytes(kPageSize)));
}

TEST(DeltaTest, AllPathsAgreeAtEveryWordBitAndBoundary) {
  Random random(2);
  const Bytes base = random_page(random);
  for (size_t word = 0; word < kPageSize / 8; ++word) {
    Bytes page = base;
    change_word(&page, word, uint64_t{1} << random() % 64);  // a single bit
    ASSERT_NO_FATAL_FAILURE(expect_paths_agree(base, page)) << word;
    ASSERT_EQ(encoded(delta_paths().front(), base, page).size, kMinDeltaBytes);
  }
  for (size_t line = 0; line < kDeltaLines; ++line) {
    Bytes page = base;
    for (size_t word = 0; word < 8; ++word) change_word(&page, line * 8 + word, ~uint64_t{0});
    ASSERT_NO_FATAL_FAILURE(expect_paths_agree(base, page)) << line;
  }
  Bytes page = base;  // two words that lie side by side in two lines, and the ends of the page
  for (const size_t word : {0u, 7u, 8u, 255u, 256u, 511u}) change_word(&page, word, 1);
  ASSERT_NO_FATAL_FAILURE(expect_paths_agree(base, page));
}

TEST(DeltaTest, TheSizesAreThoseOfTheFormat) {
  Random random(3);
  const Bytes base = random_page(random);
  Bytes page = base;
  EXPECT_EQ(encoded(delta_paths().front(), base, page).size, 0u);
  change_word(&page, 3, 0x1122);
  const Encoded one = encoded(delta_paths().front(), base, page);
  const Bytes expected{std::byte{1},    {}, {}, {}, {}, {}, {}, {}, std::byte{8}, std::byte{0x22},
                       std::byte{0x11}, {}, {}, {}, {}, {}, {}};
  EXPECT_EQ(one.payload, expected) << "line 0, word 3, 0x1122";
  for (size_t word = 0; word < kPageSize / 8; ++word) change_word(&page, word, 1u << 20);
  EXPECT_EQ(encoded(delta_paths().front(), base, page).size, kMaxDeltaBytes);
}

TEST(DeltaTest, WhatIsNotExactlyOneDeltaIsRefused) {
  Random random(4);
  const Bytes base = random_page(random);
  Bytes page = base;
  for (size_t i = 0; i < 40; ++i) change_word(&page, random() % 512, random() | 1);
  const Bytes good = encoded(delta_paths().front(), base, page).payload;
  ASSERT_TRUE(check_delta(good));
  for (size_t size = 0; size < good.size(); ++size)
    ASSERT_FALSE(check_delta(std::span(good).first(size))) << "cut to " << size;
  Bytes longer = good;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(check_delta(longer));
  Bytes no_words = good;
  no_words[8] = std::byte{0};
  EXPECT_FALSE(check_delta(no_words)) << "a changed line without a changed word";
  EXPECT_FALSE(check_delta(Bytes(kMinDeltaBytes))) << "changes nothing";
}

TEST(DeltaTest, WhatIsAcceptedTouchesNothingOutsideThePage) {
  Random random(5);
  int accepted = 0;
  for (int round = 0; round < 200'000; ++round) {
    Bytes delta(kMinDeltaBytes + random() % 64);
    for (std::byte& byte : delta) byte = static_cast<std::byte>(random());
    // Few lines and few words, or next to none would be sound.
    const uint64_t lines =
        (uint64_t{1} << random() % 64) | (random() % 2 == 0 ? uint64_t{1} << random() % 64 : 0);
    std::memcpy(delta.data(), &lines, sizeof lines);
    if (!check_delta(delta)) continue;
    ++accepted;
    for (const DeltaPath& path : delta_paths()) {
      Bytes page(3 * kPageSize, std::byte{0x5a});
      Bytes middle(page.begin() + kPageSize, page.begin() + 2 * kPageSize);
      const Bytes exact(delta);
      path.apply(exact.data(), page.data() + kPageSize);
      for (size_t at = 0; at < kPageSize; ++at) {
        ASSERT_EQ(page[at], std::byte{0x5a});
        ASSERT_EQ(page[2 * kPageSize + at], std::byte{0x5a});
      }
    }
  }
  EXPECT_GT(accepted, 500);
}

}  // namespace
}  // namespace remusd::ckpt
