// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "ckpt/page_codec.h"
#include "tests/ckpt_page_entries.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMemoryPages = 1024;

struct Fixture {
  std::vector<uint64_t> pages;
  Bytes data;
};

/// `count` pages that are zero, compressible and random in turn, on every third page number.
Fixture mixed_pages(size_t count, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  Fixture fixture;
  fixture.data.resize(count * kPageSize);
  for (size_t i = 0; i < count; ++i) {
    fixture.pages.push_back(3 * i);
    for (size_t at = 0; at < kPageSize; ++at) {
      std::byte& byte = fixture.data[i * kPageSize + at];
      if (i % 3 == 1) byte = static_cast<std::byte>(at / 64);
      if (i % 3 == 2) byte = static_cast<std::byte>(random());
    }
  }
  return fixture;
}

Bytes encoded(const Fixture& fixture) {
  Bytes body;
  encode_pages(fixture.pages, fixture.data, &body);
  return body;
}

void set_entry(Bytes* body, size_t index, const PageEntry& entry) {
  std::memcpy(body->data() + kTable + index * sizeof entry, &entry, sizeof entry);
}
Status checked(const Bytes& body) {
  uint32_t pages = 0;
  return check_pages(body, kMemoryPages, &pages);
}

TEST(PageCodecTest, PagesComeBackAndOthersStayAsTheyWere) {
  const Fixture fixture = mixed_pages(kMaxPagesPerFrame);
  Bytes body(5, std::byte{1});  // what is already there stays
  const PageCounts counts = encode_pages(fixture.pages, fixture.data, &body);
  EXPECT_EQ(counts.zero, 86u);
  EXPECT_EQ(counts.lz4, 85u);
  EXPECT_EQ(counts.raw, 85u);
  EXPECT_EQ(counts.total(), fixture.pages.size());
  const View view = View(body).subspan(5);
  ASSERT_LE(view.size(), kMaxBodyBytes);

  uint32_t pages = 0;
  ASSERT_TRUE(check_pages(view, kMemoryPages, &pages).ok());
  EXPECT_EQ(pages, fixture.pages.size());
  ASSERT_TRUE(verify_pages(view).ok());
  Bytes memory(kMemoryPages * kPageSize, std::byte{0x77});
  ASSERT_TRUE(apply_pages(view, memory).ok());
  for (size_t page = 0; page < kMemoryPages; ++page) {
    const std::byte* actual = memory.data() + page * kPageSize;
    if (page % 3 == 0 && page / 3 < fixture.pages.size()) {
      ASSERT_EQ(std::memcmp(actual, fixture.data.data() + page / 3 * kPageSize, kPageSize), 0) << page;
    } else {
      ASSERT_EQ(actual[0], std::byte{0x77}) << page;
    }
  }
}

TEST(PageCodecTest, OneByteMakesAPageNonZero) {
  for (const size_t at : {size_t{0}, size_t{1}, kPageSize / 2, kPageSize - 1}) {
    Bytes data(kPageSize);
    data[at] = std::byte{1};
    Bytes body;
    const uint64_t page = 5;
    EXPECT_EQ(encode_pages({&page, 1}, data, &body).zero, 0u) << at;
    Bytes memory(8 * kPageSize, std::byte{9});
    ASSERT_TRUE(checked(body).ok());
    ASSERT_TRUE(apply_pages(body, memory).ok());
    EXPECT_EQ(std::memcmp(memory.data() + 5 * kPageSize, data.data(), kPageSize), 0);
  }
}

TEST(PageCodecTest, CutAtAnyLengthOrLongerIsRefused) {
  Bytes body = encoded(mixed_pages(6));
  uint32_t pages = 0;
  for (size_t length = 0; length < body.size(); ++length)
    ASSERT_EQ(check_pages(View(body).first(length), kMemoryPages, &pages).code(), Code::corrupt) << length;
  body.push_back(std::byte{0});
  EXPECT_EQ(checked(body).code(), Code::corrupt);
}

TEST(PageCodecTest, CountsOutsideTheBoundAreRefused) {
  for (const uint32_t count : {0u, kMaxPagesPerFrame + 1, 0xffffffffu}) {
    Bytes body = encoded(mixed_pages(2));
    std::memcpy(body.data(), &count, sizeof count);
    EXPECT_THAT(checked(body).message(), HasSubstr("count"));
  }
}

TEST(PageCodecTest, WrongTableEntriesAreRefused) {
  const Bytes good = encoded(mixed_pages(3));
  const auto refused = [&](size_t index, auto change) {
    Bytes body = good;
    PageEntry entry = entry_of(body, index);
    change(entry);
    set_entry(&body, index, entry);
    return checked(body).message();
  };
  EXPECT_THAT(refused(0, [](PageEntry& e) { e.page = 3; }), HasSubstr("out of order"))
      << "the same page twice";
  EXPECT_THAT(refused(2, [](PageEntry& e) { e.page = 1; }), HasSubstr("out of order"));
  EXPECT_THAT(refused(2, [](PageEntry& e) { e.page = kMemoryPages; }), HasSubstr("outside the memory"));
  EXPECT_THAT(refused(2, [](PageEntry& e) { e.page = ~0ull; }), HasSubstr("outside the memory"));
  EXPECT_THAT(refused(1, [](PageEntry& e) { e.encoding = 3; }), HasSubstr("unknown encoding"));
  EXPECT_THAT(refused(1, [](PageEntry& e) { e.encoding = 0; }), HasSubstr("payload"));
  EXPECT_THAT(refused(0, [](PageEntry& e) { e.encoding = 2; }), HasSubstr("payload"));
  EXPECT_THAT(refused(2, [](PageEntry& e) { e.payload_bytes = 4095; }), HasSubstr("payload"));
  EXPECT_THAT(refused(1, [](PageEntry& e) { e.payload_bytes += 1; }), HasSubstr("payloads"));
  EXPECT_THAT(refused(0, [](PageEntry& e) { e.reserved[1] = 1; }), HasSubstr("reserved"));
}

// Fault 10.
TEST(PageCodecTest, PayloadsThatDoNotDecodeToOnePageAreRefused) {
  const uint64_t page = 1;
  Bytes body;
  encode_pages({&page, 1}, Bytes(kPageSize, std::byte{7}), &body);
  const size_t payload = kTable + sizeof(PageEntry);
  ASSERT_EQ(entry_of(body, 0).encoding, static_cast<uint8_t>(PageEncoding::lz4));
  Bytes memory(4 * kPageSize, std::byte{0x33});

  // A match length that runs on for megabytes.
  Bytes bomb(body.begin(), body.begin() + payload);
  bomb.insert(bomb.end(), {std::byte{0x1f}, std::byte{7}, std::byte{1}, std::byte{0}});
  bomb.insert(bomb.end(), 4000, std::byte{0xff});
  PageEntry entry = entry_of(bomb, 0);
  entry.payload_bytes = static_cast<uint32_t>(bomb.size() - payload);
  set_entry(&bomb, 0, entry);
  ASSERT_TRUE(checked(bomb).ok()) << "the table is sound";
  EXPECT_EQ(verify_pages(bomb).code(), Code::corrupt);
  EXPECT_EQ(apply_pages(bomb, memory).code(), Code::corrupt);

  // One that is too short: a single literal.
  Bytes stub(body.begin(), body.begin() + payload);
  stub.insert(stub.end(), {std::byte{0x10}, std::byte{7}});
  entry.payload_bytes = 2;
  set_entry(&stub, 0, entry);
  ASSERT_TRUE(checked(stub).ok());
  EXPECT_EQ(verify_pages(stub).code(), Code::corrupt);
  EXPECT_EQ(apply_pages(stub, memory).code(), Code::corrupt);
  EXPECT_EQ(memory[0], std::byte{0x33});
  EXPECT_EQ(memory[2 * kPageSize], std::byte{0x33}) << "nothing beyond the page is touched";
}

TEST(PageCodecTest, DamagedBodiesNeverCrashAndVerifyForetellsApply) {
  const Bytes good = encoded(mixed_pages(9, 3));
  Bytes memory(kMemoryPages * kPageSize);
  std::mt19937_64 random(11);
  int accepted = 0;
  for (int round = 0; round < 100'000; ++round) {
    Bytes body = good;
    const size_t reach = round % 2 == 0 ? body.size() : kTable + 9 * sizeof(PageEntry);
    for (uint64_t changes = 1 + random() % 4; changes > 0; --changes)
      body[random() % reach] = static_cast<std::byte>(random());
    if (!checked(body).ok()) continue;
    ++accepted;
    ASSERT_EQ(verify_pages(body).ok(), apply_pages(body, memory).ok()) << round;
  }
  EXPECT_GT(accepted, 1000);
}

}  // namespace
}  // namespace remusd::ckpt
