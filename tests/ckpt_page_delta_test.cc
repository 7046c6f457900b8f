// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// PAGES bodies with a shadow: what the receiver has is always what the sender's memory was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <set>
#include <string>

#include "ckpt/delta.h"
#include "ckpt/page_codec.h"
#include "tests/ckpt_page_entries.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using Random = std::mt19937_64;

constexpr uint64_t kPages = 512;

Shadow make_shadow(size_t slots) {
  auto shadow = Shadow::make(kPages, slots * kPageSize);
  EXPECT_TRUE(shadow.ok());
  return *std::move(shadow);
}

PageEncoding encoding_of(const Bytes& body) {
  return static_cast<PageEncoding>(entry_of(body, 0).encoding);
}

Bytes random_bytes(Random& random, size_t size) {
  Bytes bytes(size);
  for (size_t at = 0; at < size; at += 8) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
  return bytes;
}

/// Page 5 with a shadow that knows it, and what the next content of it is encoded as.
class OnePage {
 public:
  explicit OnePage(const Bytes& content) : known_(content) {
    Bytes body;
    encode_pages({&kPage, 1}, content, &body, &shadow_);
  }
  Bytes next(const Bytes& content) {
    Bytes body;
    const PageCounts counts = encode_pages({&kPage, 1}, content, &body, &shadow_);
    EXPECT_EQ(counts.total() + counts.same, 1u);
    if (counts.total() == 0) {
      EXPECT_TRUE(body.empty());
      EXPECT_EQ(known_, content);
      return body;
    }
    uint32_t pages = 0;
    EXPECT_TRUE(check_pages(body, kPages, &pages, /*deltas=*/true).ok());
    EXPECT_TRUE(verify_pages(body).ok());
    Bytes memory(kPages * kPageSize, std::byte{0x11});
    std::copy(known_.begin(), known_.end(), memory.begin() + kPage * kPageSize);
    EXPECT_TRUE(apply_pages(body, memory).ok());
    EXPECT_EQ(std::memcmp(memory.data() + kPage * kPageSize, content.data(), kPageSize), 0);
    EXPECT_EQ(memory[kPage * kPageSize - 1], std::byte{0x11});
    EXPECT_EQ(memory[(kPage + 1) * kPageSize], std::byte{0x11});
    known_ = content;
    return body;
  }

 private:
  static constexpr uint64_t kPage = 5;
  Shadow shadow_ = make_shadow(4);
  Bytes known_;
};

TEST(PageDeltaTest, EachKindOfChangeGoesTheCheapestWay) {
  Random random(1);
  Bytes content = random_bytes(random, kPageSize);
  OnePage page(content);
  EXPECT_TRUE(page.next(content).empty()) << "nothing changed";

  content[100] ^= std::byte{1};
  Bytes body = page.next(content);
  EXPECT_EQ(encoding_of(body), PageEncoding::delta);
  EXPECT_EQ(body.size(), kTable + sizeof(PageEntry) + kMinDeltaBytes);

  for (size_t at = 0; at < kPageSize; at += 64) content[at] ^= std::byte{3};
  body = page.next(content);
  EXPECT_EQ(encoding_of(body), PageEncoding::delta_lz4) << "64 words, all changed alike";
  EXPECT_LT(body.size(), 150u);

  for (size_t at = 0; at < 1200; ++at) content[at] = static_cast<std::byte>(random());
  EXPECT_EQ(encoding_of(page.next(content)), PageEncoding::delta) << "noise: lz4 does not pay";

  std::fill(content.begin(), content.begin() + 3000, std::byte{7});
  EXPECT_EQ(encoding_of(page.next(content)), PageEncoding::lz4) << "much of it, and it is regular now";

  content = random_bytes(random, kPageSize);
  EXPECT_EQ(encoding_of(page.next(content)), PageEncoding::raw);
  body = page.next(Bytes(kPageSize));
  EXPECT_EQ(encoding_of(body), PageEncoding::zero);
  EXPECT_EQ(body.size(), kTable + sizeof(PageEntry));
  for (size_t at = 0; at < kPageSize; ++at) content[at] = static_cast<std::byte>(at / 64);
  EXPECT_EQ(encoding_of(page.next(content)), PageEncoding::lz4);
}

TEST(PageDeltaTest, AFrameOfPagesThatAllStayedTheSameIsNone) {
  Random random(2);
  Shadow shadow = make_shadow(300);
  std::vector<uint64_t> numbers;
  for (uint64_t page = 0; page < kMaxPagesPerFrame; ++page) numbers.push_back(2 * page);
  Bytes data = random_bytes(random, numbers.size() * kPageSize);
  Bytes body(3, std::byte{9});
  encode_pages(numbers, data, &body, &shadow);
  body.resize(3);
  EXPECT_EQ(encode_pages(numbers, data, &body, &shadow).same, numbers.size());
  EXPECT_EQ(body.size(), 3u) << "what is already there stays";

  data[17 * kPageSize] ^= std::byte{1};
  data[200 * kPageSize] ^= std::byte{1};
  const PageCounts counts = encode_pages(numbers, data, &body, &shadow);
  EXPECT_EQ(counts.delta, 2u);
  EXPECT_EQ(counts.same, numbers.size() - 2);
  body.erase(body.begin(), body.begin() + 3);
  uint32_t pages = 0;
  ASSERT_TRUE(check_pages(body, kPages, &pages, /*deltas=*/true).ok());
  EXPECT_EQ(pages, 2u);
  EXPECT_EQ(entry_of(body, 0).page, 34u);
  EXPECT_EQ(entry_of(body, 1).page, 400u);
}

TEST(PageDeltaTest, PagesOfTheFirstSyncAreNotKeptUnlessTheyAreAlready) {
  Random random(3);
  Shadow shadow = make_shadow(8);
  const uint64_t page = 3;
  Bytes content = random_bytes(random, kPageSize), body;
  encode_pages({&page, 1}, content, &body, &shadow, /*keep_new=*/false);
  EXPECT_EQ(shadow.pages(), 0u);
  encode_pages({&page, 1}, content, &body, &shadow);
  content[0] ^= std::byte{1};
  body.clear();
  EXPECT_EQ(encode_pages({&page, 1}, content, &body, &shadow, /*keep_new=*/false).delta, 1u);
  EXPECT_EQ(std::memcmp(shadow.find(page), content.data(), kPageSize), 0) << "brought up to date";
}

TEST(PageDeltaTest, DeltasThatWereNotAgreedOnAreRefused) {
  Random random(4);
  for (const size_t changes : {1u, 64u}) {
    Bytes content = random_bytes(random, kPageSize);
    OnePage page(content);
    for (size_t i = 0; i < changes; ++i) content[i * 64] ^= std::byte{3};
    const Bytes body = page.next(content);
    uint32_t pages = 0;
    EXPECT_THAT(check_pages(body, kPages, &pages).message(), HasSubstr("not agreed on"));
  }
}

TEST(PageDeltaTest, PayloadsThatAreNoDeltaAreRefused) {
  Random random(5);
  Bytes content = random_bytes(random, kPageSize);
  OnePage page(content);
  content[9] ^= std::byte{1};
  const Bytes good = page.next(content);
  const size_t payload = kTable + sizeof(PageEntry);
  const auto refused = [&](Bytes body) {
    PageEntry entry = entry_of(body, 0);
    entry.payload_bytes = static_cast<uint32_t>(body.size() - payload);
    std::memcpy(body.data() + kTable, &entry, sizeof entry);
    uint32_t pages = 0;
    EXPECT_TRUE(check_pages(body, kPages, &pages, /*deltas=*/true).ok()) << "the table is sound";
    Bytes memory(kPages * kPageSize, std::byte{0x33});
    const Bytes before = memory;
    EXPECT_EQ(verify_pages(body).code(), apply_pages(body, memory).code());
    if (!verify_pages(body).ok()) {
      EXPECT_EQ(memory, before);
    }
    return verify_pages(body).message();
  };
  EXPECT_EQ(refused(good), "");
  Bytes body = good;
  body.pop_back();
  EXPECT_THAT(refused(body), HasSubstr("one delta"));
  body = good;
  body.push_back(std::byte{0});
  EXPECT_THAT(refused(body), HasSubstr("one delta"));
  body = good;
  body[payload] = std::byte{3};  // a second line, of which nothing follows
  EXPECT_THAT(refused(body), HasSubstr("one delta"));
  body = good;
  body[kTable + 12] = std::byte{17};  // not lz4
  EXPECT_THAT(refused(body), HasSubstr("one delta"));
  // An lz4 block that decodes to megabytes.
  body.resize(payload);
  body.insert(body.end(), {std::byte{0x1f}, std::byte{7}, std::byte{1}, std::byte{0}});
  body.insert(body.end(), 4000, std::byte{0xff});
  EXPECT_THAT(refused(body), HasSubstr("one delta"));
}

TEST(PageDeltaTest, DamagedBodiesNeverCrashAndVerifyForetellsApply) {
  Random random(6);
  Shadow shadow = make_shadow(16);
  std::vector<uint64_t> numbers;
  for (uint64_t page = 0; page < 9; ++page) numbers.push_back(3 * page);
  Bytes data = random_bytes(random, numbers.size() * kPageSize), good;
  encode_pages(numbers, data, &good, &shadow);
  good.clear();
  for (size_t i = 0; i < numbers.size(); ++i)
    for (size_t word = 0; word <= 8 * i; ++word)
      data[i * kPageSize + (word * 56) % kPageSize] ^= std::byte{1};
  const PageCounts counts = encode_pages(numbers, data, &good, &shadow);
  ASSERT_GT(counts.delta, 1u);
  ASSERT_GT(counts.delta_lz4, 1u);
  Bytes memory(kPages * kPageSize);
  int accepted = 0;
  for (int round = 0; round < 100'000; ++round) {
    Bytes body = good;
    for (uint64_t changes = 1 + random() % 3; changes > 0; --changes)
      body[random() % body.size()] = static_cast<std::byte>(random());
    uint32_t pages = 0;
    if (!check_pages(body, kPages, &pages, /*deltas=*/true).ok()) continue;
    ++accepted;
    ASSERT_EQ(verify_pages(body).ok(), apply_pages(body, memory).ok()) << round;
  }
  EXPECT_GT(accepted, 1000);
}

/// A guest that writes as guests do: counters, records, whole pages, and sometimes what was there already.
TEST(PageDeltaTest, TheReceiversMemoryIsTheSendersWhateverIsWritten) {
  for (const size_t slots : {0u, 1u, 7u, 100u, 512u}) {
    Random random(slots + 1);
    Shadow shadow = make_shadow(std::max<size_t>(slots, 1));
    Bytes ours(kPages * kPageSize), theirs(ours.size());
    PageCounts sum;
    for (int frame = 0; frame < 400; ++frame) {
      std::vector<uint64_t> numbers;
      Bytes data, body;
      const uint64_t step = 1 + random() % 40;
      for (uint64_t page = random() % step; page < kPages; page += 1 + random() % step) {
        if (numbers.size() == kMaxPagesPerFrame) break;
        const std::span content = std::span(ours).subspan(page * kPageSize, kPageSize);
        const auto kind = random() % 8;
        if (kind == 0) std::fill(content.begin(), content.end(), std::byte{0});
        if (kind == 1) std::ranges::copy(random_bytes(random, kPageSize), content.begin());
        if (kind == 2) std::fill_n(content.begin() + random() % 1000, 3000, static_cast<std::byte>(random()));
        for (uint64_t writes = kind < 4 ? 0 : random() % 100; writes > 0; --writes)
          content[random() % kPageSize] = static_cast<std::byte>(random());
        numbers.push_back(page);
        data.insert(data.end(), content.begin(), content.end());
      }
      if (numbers.empty()) continue;
      const PageCounts counts =
          encode_pages(numbers, data, &body, slots > 0 ? &shadow : nullptr, /*keep_new=*/frame > 20);
      sum.same += counts.same;
      sum.delta += counts.delta + counts.delta_lz4;
      ASSERT_EQ(counts.total() + counts.same, numbers.size());
      ASSERT_EQ(body.empty(), counts.total() == 0);
      if (body.empty()) continue;
      uint32_t pages = 0;
      ASSERT_TRUE(check_pages(body, kPages, &pages, /*deltas=*/slots > 0).ok());
      ASSERT_EQ(pages, counts.total());
      ASSERT_TRUE(verify_pages(body).ok());
      ASSERT_TRUE(apply_pages(body, theirs).ok());
      ASSERT_EQ(std::memcmp(ours.data(), theirs.data(), ours.size()), 0) << "frame " << frame;
    }
    if (slots == 0) {
      EXPECT_EQ(sum.same + sum.delta, 0u);
    }
    if (slots >= 100) {  // A shadow that is much too small only has to be right.
      EXPECT_GT(sum.delta, 1000u);
      EXPECT_GT(sum.same, 10u);
    }
    EXPECT_EQ(shadow.evicted() > 0, slots > 0 && slots < 512) << slots;
  }
}

/// Frames of `epochs` epochs in which `write` changes memory and names the pages; bytes on the wire for each
/// byte of a dirty page. The first tenth is not counted.
double wire_ratio(int epochs, const std::function<void(Bytes* memory, std::set<uint64_t>* dirty)>& write) {
  Shadow shadow = make_shadow(kPages);
  Bytes memory(kPages * kPageSize), body;
  size_t raw = 0, wire = 0;
  for (int epoch = 0; epoch < epochs; ++epoch) {
    std::set<uint64_t> dirty;
    write(&memory, &dirty);
    const std::vector<uint64_t> numbers(dirty.begin(), dirty.end());
    Bytes data;
    for (const uint64_t page : numbers) {
      const std::span content = std::span(memory).subspan(page * kPageSize, kPageSize);
      data.insert(data.end(), content.begin(), content.end());
    }
    body.clear();
    encode_pages(numbers, data, &body, &shadow);
    if (epoch < epochs / 10) continue;
    raw += data.size();
    wire += body.size() + (body.empty() ? 0 : sizeof(FrameHeader));
  }
  return static_cast<double>(wire) / static_cast<double>(raw);
}

TEST(PageDeltaTest, AKeyValueStoreCostsASmallPartOfItsDirtyPages) {
  // Each epoch sets 100 keys: a value of 100 random bytes with its header in a slot of 128, a pointer in the
  // index, and a line appended to a log that goes round.
  constexpr uint64_t kIndexPages = 32, kLogPages = 32, kSlots = (kPages - kIndexPages - kLogPages) * 32;
  Random random(8);
  uint64_t log = 0, clock = 0;
  const double ratio = wire_ratio(200, [&](Bytes* memory, std::set<uint64_t>* dirty) {
    const auto put = [&](uint64_t at, const void* data, size_t size) {
      std::memcpy(memory->data() + at, data, size);
      dirty->insert(at / kPageSize);
    };
    for (int i = 0; i < 100; ++i) {
      const uint64_t key = random() % kSlots, now = ++clock;
      const Bytes value = random_bytes(random, 104);
      const uint64_t slot = (kIndexPages + kLogPages) * kPageSize + key * 128;
      put(slot, &now, sizeof now);
      put(slot + 16, value.data(), 100);
      put(key % (kIndexPages * kPageSize / 8) * 8, &slot, sizeof slot);
      put(kIndexPages * kPageSize + log, value.data(), 100);
      log = (log + 128) % (kLogPages * kPageSize);
    }
  });
  RecordProperty("ratio", std::to_string(ratio));
  EXPECT_LE(ratio, 0.15);
}

TEST(PageDeltaTest, IncompressiblePagesCostHardlyMoreThanThemselves) {
  Random random(9);
  const double ratio = wire_ratio(20, [&](Bytes* memory, std::set<uint64_t>* dirty) {
    for (uint64_t page = random() % 2; page < kPages; page += 2) {
      std::ranges::copy(random_bytes(random, kPageSize),
                        memory->begin() + static_cast<long>(page * kPageSize));
      dirty->insert(page);
    }
  });
  RecordProperty("ratio", std::to_string(ratio));
  EXPECT_LE(ratio, 1.02);
}

}  // namespace
}  // namespace remusd::ckpt
