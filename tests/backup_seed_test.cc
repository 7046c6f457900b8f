// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A standby that begins with an older image: what is told, and that nothing of it gets into a committed image
// unless the primary says so.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "backup/seed.h"
#include "backup/store.h"
#include "ckpt/page_codec.h"
#include "guest/sim/memory.h"

namespace remusd::backup {
namespace {

using ckpt::Bytes;
using ckpt::FrameType;
using ::testing::HasSubstr;

constexpr uint64_t kPages = 40000;  // some ten frames, and slices that find only zeros

std::span<std::byte> page_of(std::span<std::byte> memory, uint64_t page) {
  return memory.subspan(page * kPageSize, kPageSize);
}

/// A standby's memory, and a residue of which the pages in `content` are filled with a byte.
class Seeding : public testing::Test {
 protected:
  void fill(const std::map<uint64_t, int>& content, uint64_t pages = kPages) {
    auto older = *guest::sim::SimMemory::create(pages * kPageSize);
    for (const auto& [page, value] : content)
      std::ranges::fill(page_of(older.inside(), page), static_cast<std::byte>(value));
    residue_ = std::move(older).leave();
  }
  /// Everything that is told.
  void seed() {
    Seeder seeder(memory(), std::move(residue_));
    uint64_t next = 0;
    while (!seeder.done()) {
      Bytes body;
      seeder.next(&body);
      if (body.empty()) continue;
      ckpt::Seed record;
      ASSERT_TRUE(ckpt::decode(body, &record).ok());
      if (!told_.empty()) {
        EXPECT_EQ(record.key, key_);
      }
      key_ = record.key;
      EXPECT_EQ(record.last, seeder.done());
      size_t index = 0;
      for (const PageRange& run : record.runs) {
        ASSERT_GE(run.first, next);
        next = run.first + run.count;
        for (uint64_t page = run.first; page < next; ++page) told_[page] = record.digest(index++);
      }
      ++frames_;
    }
    pages_ = seeder.take();
    EXPECT_EQ(pages_.waiting(), told_.size());
  }
  Bytes keep(const PageSet& runs) const {
    Bytes all;
    for (const PageRange& run : runs) {
      for (uint64_t page = run.first; page < run.first + run.count; ++page) {
        const auto found = told_.find(page);
        const ckpt::PageDigest digest = found == told_.end() ? ckpt::PageDigest{} : found->second;
        const auto bytes = std::as_bytes(std::span(&digest, 1));
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
    }
    Bytes body;
    ckpt::encode(ckpt::Keep{runs, ckpt::digest_of(key_, all)}, &body);
    return body;
  }
  std::span<std::byte> memory() { return standby_.outside(); }

  guest::sim::SimMemory standby_ = *guest::sim::SimMemory::create(kPages * kPageSize);
  guest::Residue residue_;
  ckpt::DigestKey key_{};
  std::map<uint64_t, ckpt::PageDigest> told_;
  int frames_ = 0;
  SeededPages pages_;
};

TEST_F(Seeding, EveryPageThatIsNotZeroIsCopiedAndToldWithItsDigest) {
  std::map<uint64_t, int> content;
  std::mt19937 random(7);
  for (uint64_t page = 0; page < 9000; ++page) {
    if (page % 3 != 0) content[page] = 1 + static_cast<int>(random() % 255);
    if (page % 100 == 0) content[page] = 0;  // takes memory and is zero
  }
  content[kPages - 1] = 5;
  fill(content);
  seed();
  std::erase_if(content, [](const auto& page) { return page.second == 0; });
  ASSERT_EQ(told_.size(), content.size());
  for (const auto& [page, value] : content) {
    const auto bytes = page_of(memory(), page);
    ASSERT_EQ(std::ranges::count(bytes, static_cast<std::byte>(value)), static_cast<ptrdiff_t>(kPageSize));
    EXPECT_EQ(told_[page], ckpt::digest_of(key_, bytes));
  }
  EXPECT_GE(frames_, 2);
}

TEST_F(Seeding, ZerosThatTakeMemoryAreNotTold) {
  std::map<uint64_t, int> zeros;
  for (uint64_t page = 0; page < kPages; ++page) zeros[page] = 0;
  zeros[kPages - 1] = 1;
  fill(zeros);
  seed();
  EXPECT_EQ(told_.size(), 1u);
  EXPECT_EQ(frames_, 1);
}

TEST_F(Seeding, WithoutAResidueOneFrameSaysThatThereIsNothing) {
  seed();
  EXPECT_EQ(frames_, 1);
  EXPECT_TRUE(told_.empty());
}

TEST_F(Seeding, AResidueOfAnotherSizeIsNotUsed) {
  fill({{1, 1}}, kPages / 2);
  seed();
  EXPECT_TRUE(told_.empty());
}

TEST_F(Seeding, ASeedingThatEndsEarlyLosesNothingOfTheResidue) {
  std::map<uint64_t, int> content{{20000, 3}, {kPages - 1, 4}};
  for (uint64_t page = 1; page <= ckpt::kMaxSeedPages; ++page) content[page] = 1;
  fill(content);
  Seeder seeder(memory(), std::move(residue_));
  Bytes body;
  seeder.next(&body);
  EXPECT_FALSE(seeder.done());
  seeder.finish();
  for (const auto& [page, value] : content)
    EXPECT_EQ(page_of(memory(), page)[17], static_cast<std::byte>(value));
}

TEST_F(Seeding, AResidueIsGivenBackAsItIsCopied) {
  std::map<uint64_t, int> content;
  for (uint64_t page = 0; page < kPages; ++page) content[page] = 1;
  fill(content);
  EXPECT_GE(residue_.used_bytes(), kPages * kPageSize);
  residue_.release({0, kPages / 2});
  EXPECT_LE(residue_.used_bytes(), kPages * kPageSize / 2);
  PageSet populated;
  ASSERT_TRUE(residue_.populated(&populated).ok());
  EXPECT_EQ(populated, (PageSet{{kPages / 2, kPages / 2}}));
}

TEST_F(Seeding, OnlyWhatWasToldAndIsStillAsItWasIsKept) {
  fill({{10, 1}, {11, 2}, {12, 3}, {90, 4}, {91, 5}});
  seed();
  EXPECT_TRUE(pages_.keep(keep({{10, 1}, {12, 1}}), memory()).ok());
  EXPECT_EQ(pages_.waiting(), 3u);
  for (const uint64_t page : {uint64_t{10}, uint64_t{13}, kPages, uint64_t{1} << 40}) {
    SeededPages pages = pages_;
    EXPECT_THAT(pages.keep(keep({{page, 1}}), memory()).message(), HasSubstr("was not told")) << page;
  }
  memory()[90 * kPageSize + 4000] ^= std::byte{1};  // whoever wrote it
  EXPECT_THAT(pages_.keep(keep({{90, 2}}), memory()).message(), HasSubstr("not here what they are"));
}

/// Frames of epoch 1, as a primary sends them.
class SeededStore : public Seeding {
 protected:
  Status add(FrameType type, const Bytes& body, uint64_t epoch = 1) {
    Bytes bytes;
    writer_.append(type, epoch, body, &bytes);
    ckpt::FrameView frame;
    size_t consumed = 0;
    EXPECT_TRUE(reader_.next(bytes, &frame, &consumed).ok());
    if (type == FrameType::commit) return store_.commit(frame, &commit_);
    digest_.add(frame.header.checksum);
    return store_.add(frame);
  }
  Status send(const std::vector<uint64_t>& pages, int value, uint64_t epoch = 1) {
    Bytes body;
    const Bytes data(pages.size() * kPageSize, static_cast<std::byte>(value));
    ckpt::encode_pages(pages, data, &body);
    sent_ += pages.size();
    return add(FrameType::pages, body, epoch);
  }
  Status finish(uint64_t epoch = 1) {
    Bytes body;
    uint64_t offset = 0;
    EXPECT_TRUE(ckpt::append_blob_part(Bytes(100), 0, &body, &offset).ok());
    REMUSD_TRY(add(FrameType::device, body, epoch));
    ckpt::Commit commit{digest_.frames(), sent_, 100, sent_ * kPageSize + 100, digest_.value()};
    body.clear();
    ckpt::encode(commit, &body);
    digest_.reset();
    sent_ = 0;
    return add(FrameType::commit, body, epoch);
  }

  Store store_{memory(), 8u << 20};
  ckpt::FrameWriter writer_;
  ckpt::FrameReader reader_;
  ckpt::EpochDigest digest_;
  ckpt::Commit commit_;
  uint64_t sent_ = 0;
};

TEST_F(SeededStore, AnImageIsCommittedWhenEveryOlderPageWasKeptOrReplaced) {
  fill({{1, 1}, {2, 2}, {3, 3}, {4, 4}});
  seed();
  store_.begin_with(std::move(pages_));
  ASSERT_TRUE(send({2, 7}, 9).ok());
  ASSERT_TRUE(add(FrameType::keep, keep({{1, 1}, {4, 1}})).ok());
  ASSERT_TRUE(send({3}, 0).ok());  // it is zero on the primary
  ASSERT_TRUE(send({1}, 8).ok());  // kept, then written
  const Status committed = finish();
  ASSERT_TRUE(committed.ok()) << committed.message();
  const std::map<uint64_t, int> want{{1, 8}, {2, 9}, {4, 4}, {7, 9}};
  for (uint64_t page = 0; page < 20; ++page) {
    const int value = want.contains(page) ? want.at(page) : 0;
    EXPECT_EQ(page_of(memory(), page)[5], static_cast<std::byte>(value)) << page;
  }
}

TEST_F(SeededStore, AnEpochThatForgetsAnOlderPageIsRefused) {
  fill({{1, 1}, {2, 2}});
  seed();
  store_.begin_with(std::move(pages_));
  ASSERT_TRUE(add(FrameType::keep, keep({{1, 1}})).ok());
  EXPECT_THAT(finish().message(), HasSubstr("1 pages of an older image"));
}

TEST_F(SeededStore, APageThatWasSentIsNotKept) {
  fill({{1, 1}});
  seed();
  store_.begin_with(std::move(pages_));
  ASSERT_TRUE(send({1}, 9).ok());
  EXPECT_EQ(add(FrameType::keep, keep({{1, 1}})).code(), Code::corrupt);
}

TEST_F(SeededStore, NothingIsKeptWithoutASeed) {
  fill({{1, 1}});
  EXPECT_EQ(add(FrameType::keep, keep({{1, 1}})).code(), Code::corrupt);
}

TEST_F(SeededStore, NothingIsKeptInALaterEpoch) {
  fill({{1, 1}});
  seed();
  store_.begin_with(std::move(pages_));
  ASSERT_TRUE(add(FrameType::keep, keep({{1, 1}})).ok());
  ASSERT_TRUE(finish().ok());
  EXPECT_EQ(add(FrameType::keep, keep({{1, 1}}), 2).code(), Code::corrupt);
}

}  // namespace
}  // namespace remusd::backup
