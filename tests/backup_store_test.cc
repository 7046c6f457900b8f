// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The committed image is exactly one epoch: FAULTS.md 4, 6, 7, 9, 10, 11, 30.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>

#include "backup/store.h"
#include "ckpt/blob_delta.h"
#include "ckpt/page_codec.h"

namespace remusd::backup {
namespace {

using ckpt::Bytes;
using ckpt::FrameType;

constexpr size_t kStorePages = 64;
constexpr size_t kLimit = 1u << 20;

struct Frame {
  FrameType type;
  Bytes body;
};

/// An epoch as the primary would send it.
struct Epoch {
  std::vector<Frame> frames;
  Bytes memory;  // after it
  Bytes device;
};

Bytes random_bytes(std::mt19937& random, size_t size) {
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

class Primary {
 public:
  /// With deltas against `shadow_slots` pages, none: without.
  explicit Primary(uint32_t seed, size_t shadow_slots = 0) : random_(seed), memory_(kStorePages * kPageSize) {
    if (shadow_slots > 0) shadow_.emplace(*ckpt::Shadow::make(kStorePages, shadow_slots * kPageSize));
  }

  Epoch next(size_t frames, bool base = false) {
    Epoch epoch;
    for (size_t i = 0; i < frames; ++i) {
      std::vector<uint64_t> pages;
      for (uint64_t page = random_() % 4; page < kStorePages; page += 1 + random_() % 16)
        pages.push_back(page);
      if (pages.empty()) pages.push_back(0);
      Bytes data;
      for (const uint64_t page : pages) {
        Bytes content(kPageSize);
        const auto kind = random_() % 3;
        if (kind == 1) content = random_bytes(random_, kPageSize);
        if (kind == 2) std::fill_n(content.begin(), 100, static_cast<std::byte>(random_()));
        if (shadow_ && random_() % 4 > 0) {
          const auto old = memory_.begin() + static_cast<long>(page * kPageSize);
          std::copy_n(old, kPageSize, content.begin());
          for (auto writes = random_() % 50; writes > 0; --writes)
            content[random_() % kPageSize] ^= std::byte{1};
        }
        std::copy(content.begin(), content.end(), memory_.begin() + static_cast<long>(page * kPageSize));
        data.insert(data.end(), content.begin(), content.end());
      }
      Frame frame{FrameType::pages, {}};
      const auto counts = ckpt::encode_pages(pages, data, &frame.body, shadow_ ? &*shadow_ : nullptr);
      deltas_ += counts.delta + counts.delta_lz4;
      if (!frame.body.empty()) epoch.frames.push_back(std::move(frame));
    }
    if (base) add_blob(FrameType::base, random_bytes(random_, 3000), &epoch);
    if (!shadow_ || device_.empty() || random_() % 4 == 0)
      device_ = random_bytes(random_, 1000 + random_() % 1000);
    device_[random_() % device_.size()] ^= std::byte{1};
    epoch.device = device_;
    if (shadow_) {
      uint64_t offset = 0;
      epoch.frames.push_back({FrameType::device, {}});
      EXPECT_TRUE(history_.append_part(device_, 0, &epoch.frames.back().body, &offset).ok());
    } else {
      add_blob(FrameType::device, epoch.device, &epoch);
    }
    epoch.memory = memory_;
    return epoch;
  }
  uint64_t deltas() const { return deltas_; }

  static void add_blob(FrameType type, const Bytes& blob, Epoch* epoch) {
    uint64_t offset = 0;
    do {
      Frame frame{type, {}};
      ASSERT_TRUE(ckpt::append_blob_part(blob, offset, &frame.body, &offset).ok());
      epoch->frames.push_back(std::move(frame));
    } while (offset < blob.size());
  }

 private:
  std::mt19937 random_;
  Bytes memory_, device_;
  std::optional<ckpt::Shadow> shadow_;
  ckpt::BlobHistory history_;
  uint64_t deltas_ = 0;
};

/// Feeds a Store, with the sums a primary would make.
class Feeder {
 public:
  explicit Feeder(bool deltas = false) : memory(kStorePages * kPageSize), store(memory, kLimit, deltas) {}

  Status add(uint64_t epoch, const Frame& frame) {
    ckpt::FrameView view;
    view.header.type = static_cast<uint16_t>(frame.type);
    view.header.epoch = epoch;
    view.header.checksum =
        std::hash<std::string_view>{}({reinterpret_cast<const char*>(frame.body.data()), frame.body.size()});
    view.body = frame.body;
    return store.add(view);
  }
  ckpt::Commit sums(const Epoch& epoch) {
    ckpt::EpochDigest digest;
    ckpt::Commit commit;
    for (const Frame& frame : epoch.frames) {
      digest.add(std::hash<std::string_view>{}(
          {reinterpret_cast<const char*>(frame.body.data()), frame.body.size()}));
      if (frame.type == FrameType::pages) {
        uint32_t pages = 0;
        EXPECT_TRUE(ckpt::check_pages(frame.body, kStorePages, &pages, /*deltas=*/true).ok());
        commit.pages += pages;
        commit.raw_bytes += pages * kPageSize;
      } else {
        ckpt::BlobPart part;
        EXPECT_TRUE(ckpt::decode(frame.body, &part).ok());
        commit.raw_bytes += part.raw_bytes;
      }
    }
    commit.frames = epoch.frames.size();
    commit.device_bytes = epoch.device.size();
    commit.digest = digest.value();
    return commit;
  }
  Status commit(uint64_t epoch, const ckpt::Commit& commit) {
    Bytes body;
    ckpt::encode(commit, &body);
    ckpt::FrameView view;
    view.header.type = static_cast<uint16_t>(FrameType::commit);
    view.header.epoch = epoch;
    view.body = body;
    ckpt::Commit decoded;
    return store.commit(view, &decoded);
  }
  Status whole(uint64_t number, const Epoch& epoch) {
    for (const Frame& frame : epoch.frames) REMUSD_TRY(add(number, frame));
    return commit(number, sums(epoch));
  }

  Bytes memory;
  Store store;
};

bool same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

TEST(BackupStore, TheImageIsTheNewestWholeEpoch) {
  Primary primary(1);
  Feeder feeder;
  const Epoch first = primary.next(3, /*base=*/true);
  ASSERT_TRUE(feeder.whole(1, first).ok());
  EXPECT_EQ(feeder.store.applied(), 1u);
  EXPECT_EQ(feeder.memory, first.memory);
  EXPECT_EQ(feeder.store.base().size(), 3000u);
  for (uint64_t number = 2; number < 20; ++number) {
    const Epoch epoch = primary.next(2);
    ASSERT_TRUE(feeder.whole(number, epoch).ok());
    feeder.store.finish();
    EXPECT_EQ(feeder.store.applied(), number);
    EXPECT_EQ(feeder.memory, epoch.memory);
    EXPECT_TRUE(same(feeder.store.device(), epoch.device));
    EXPECT_EQ(feeder.store.base().size(), 3000u) << "kept until a newer one comes";
    EXPECT_EQ(feeder.store.staged_bytes(), 0u);
  }
}

TEST(BackupStore, ATornEpochNeverTouchesTheImage) {
  Primary primary(2);
  Feeder feeder;
  const Epoch first = primary.next(2);
  ASSERT_TRUE(feeder.whole(1, first).ok());
  const Epoch second = primary.next(5);
  for (const Frame& frame : second.frames) ASSERT_TRUE(feeder.add(2, frame).ok());
  feeder.store.finish();
  EXPECT_EQ(feeder.memory, first.memory);
  EXPECT_TRUE(same(feeder.store.device(), first.device));
  EXPECT_GT(feeder.store.staged_bytes(), 0u);
  feeder.store.drop_open();
  EXPECT_EQ(feeder.store.staged_bytes(), 0u);
  EXPECT_EQ(feeder.memory, first.memory);
}

TEST(BackupStore, ACommitWithAnyWrongSumIsRefusedAndTheImageKept) {
  Primary primary(3);
  const Epoch first = primary.next(2), second = primary.next(2);
  for (int field = 0; field < 5; ++field) {
    Feeder feeder;
    ASSERT_TRUE(feeder.whole(1, first).ok());
    for (const Frame& frame : second.frames) ASSERT_TRUE(feeder.add(2, frame).ok());
    ckpt::Commit commit = feeder.sums(second);
    ++(field == 0   ? commit.frames
       : field == 1 ? commit.pages
       : field == 2 ? commit.device_bytes
       : field == 3 ? commit.raw_bytes
                    : commit.digest);
    EXPECT_EQ(feeder.commit(2, commit).code(), Code::corrupt) << field;
    EXPECT_EQ(feeder.store.staged(), 1u);
    feeder.store.drop_open();
    feeder.store.finish();
    EXPECT_EQ(feeder.memory, first.memory);
  }
}

TEST(BackupStore, EveryMissingDoubledOrSwappedFrameIsSeen) {
  Primary primary(4);
  const Epoch first = primary.next(2), second = primary.next(4);
  const size_t count = second.frames.size();
  for (size_t victim = 0; victim < count; ++victim) {
    for (int kind = 0; kind < 3; ++kind) {
      std::vector<Frame> frames = second.frames;
      if (kind == 0) frames.erase(frames.begin() + static_cast<long>(victim));
      if (kind == 1) frames.insert(frames.begin() + static_cast<long>(victim), frames[victim]);
      if (kind == 2) std::swap(frames[victim], frames[(victim + 1) % count]);
      Feeder feeder;
      ASSERT_TRUE(feeder.whole(1, first).ok());
      Status status;
      for (const Frame& frame : frames) {
        if (status.ok()) status = feeder.add(2, frame);
      }
      if (status.ok()) status = feeder.commit(2, feeder.sums(second));
      EXPECT_EQ(status.code(), Code::corrupt) << victim << " " << kind;
      feeder.store.drop_open();
      feeder.store.finish();
      EXPECT_EQ(feeder.memory, first.memory);
    }
  }
}

TEST(BackupStore, AFlippedBitIsSeenBeforeTheCommitOrByIt) {
  Primary primary(5);
  const Epoch first = primary.next(2), second = primary.next(2);
  std::mt19937 random(5);
  for (int i = 0; i < 400; ++i) {
    Feeder feeder;
    ASSERT_TRUE(feeder.whole(1, first).ok());
    Epoch flipped = second;
    Bytes& body = flipped.frames[random() % flipped.frames.size()].body;
    body[random() % body.size()] ^= static_cast<std::byte>(1 << random() % 8);
    Status status;
    for (const Frame& frame : flipped.frames) {
      if (status.ok()) status = feeder.add(2, frame);
    }
    if (status.ok()) status = feeder.commit(2, feeder.sums(second));
    EXPECT_FALSE(status.ok());
    feeder.store.drop_open();
    feeder.store.finish();
    EXPECT_EQ(feeder.memory, first.memory);
  }
}

TEST(BackupStore, EpochsThatAreNotDueAreRefused) {
  Primary primary(6);
  Feeder feeder;
  const Epoch epoch = primary.next(1);
  EXPECT_EQ(feeder.add(2, epoch.frames[0]).code(), Code::corrupt);
  ASSERT_TRUE(feeder.whole(1, epoch).ok());
  for (const uint64_t number : {0, 1, 3, 9}) {
    EXPECT_EQ(feeder.add(number, epoch.frames[0]).code(), Code::corrupt) << number;
    EXPECT_EQ(feeder.commit(number, feeder.sums(epoch)).code(), Code::corrupt) << number;
  }
}

TEST(BackupStore, AnEpochWithoutItsDeviceStateIsNone) {
  Primary primary(7);
  Feeder feeder;
  Epoch epoch = primary.next(1);
  epoch.frames.pop_back();
  epoch.device.clear();
  EXPECT_EQ(feeder.whole(1, epoch).code(), Code::corrupt);
}

TEST(BackupStore, AnEpochBeyondTheLimitIsExhausted) {
  std::mt19937 random(8);
  Feeder feeder;
  Primary primary(8);
  ASSERT_TRUE(feeder.whole(1, primary.next(1)).ok());
  std::vector<uint64_t> pages(kStorePages);
  for (uint64_t page = 0; page < kStorePages; ++page) pages[page] = page;
  Frame frame{FrameType::pages, {}};
  ckpt::encode_pages(pages, random_bytes(random, kStorePages * kPageSize), &frame.body);
  Status status;
  size_t taken = 0;
  while (status.ok() && taken < 100) {
    status = feeder.add(2, frame);
    if (status.ok()) ++taken;
  }
  EXPECT_EQ(status.code(), Code::exhausted);
  EXPECT_EQ(taken, kLimit / frame.body.size());

  // A blob is refused by its announced size, before memory is taken for it.
  Feeder other;
  Bytes body;
  uint64_t offset = 0;
  ASSERT_TRUE(ckpt::append_blob_part(Bytes(2 * kLimit), 0, &body, &offset).ok());
  EXPECT_EQ(other.add(1, {FrameType::device, body}).code(), Code::exhausted);
}

TEST(BackupStore, StagingStaysWithinTwiceTheLimitWhenApplyingLags) {
  Primary primary(9);
  Feeder feeder;
  ASSERT_TRUE(feeder.whole(1, primary.next(1)).ok());
  std::mt19937 random(9);
  Bytes last;
  for (uint64_t number = 2; number < 150; ++number) {
    // Nobody calls apply_slice(): what keeps the bound is receiving itself.
    const Epoch epoch = primary.next(random() % 8 == 0 ? 12 : random() % 3);
    ASSERT_TRUE(feeder.whole(number, epoch).ok());
    ASSERT_LE(feeder.store.staged_bytes(), 2 * kLimit);
    last = epoch.memory;
  }
  feeder.store.finish();
  EXPECT_EQ(feeder.store.applied(), 149u);
  EXPECT_EQ(feeder.memory, last);
  EXPECT_LE(feeder.store.memory_bytes(), 2 * kLimit + (1 + FrameFifo::kSpareChunks) * FrameFifo::kChunkBytes);
}

TEST(BackupStore, AppliedInSlicesTheResultIsTheSame) {
  Primary primary(10);
  Feeder feeder;
  ASSERT_TRUE(feeder.whole(1, primary.next(1)).ok());
  std::vector<Bytes> images;
  for (uint64_t number = 2; number < 6; ++number) {
    const Epoch epoch = primary.next(7);
    images.push_back(epoch.memory);
    ASSERT_TRUE(feeder.whole(number, epoch).ok());
  }
  for (uint64_t applied = feeder.store.applied(); feeder.store.pending();) {
    feeder.store.apply_slice(1);
    // An epoch counts as applied at the very moment when the image is that epoch.
    if (feeder.store.applied() != applied) {
      applied = feeder.store.applied();
      if (!feeder.store.pending()) {
        EXPECT_EQ(feeder.memory, images[applied - 2]);
      }
    }
  }
  EXPECT_EQ(feeder.memory, images.back());
}

TEST(BackupStore, DeltasMakeEachEpochsImageHoweverFarApplyingLags) {
  for (const size_t slots : {2u, 16u, 64u}) {
    Primary primary(12, slots);
    Feeder feeder(/*deltas=*/true);
    ASSERT_TRUE(feeder.whole(1, primary.next(3, /*base=*/true)).ok());
    std::mt19937 random(12);
    for (uint64_t number = 2; number < 300; ++number) {
      const Epoch epoch = primary.next(random() % 4);
      const Status status = feeder.whole(number, epoch);
      ASSERT_TRUE(status.ok()) << status.message();
      if (random() % 4 > 0) continue;  // the next one's deltas come while this one is only staged
      feeder.store.finish();
      ASSERT_EQ(feeder.memory, epoch.memory);
      ASSERT_TRUE(same(feeder.store.device(), epoch.device));
    }
    if (slots > 2) {
      EXPECT_GT(primary.deltas(), 100u) << slots;
    }
  }
}

TEST(BackupStore, DeltasThatWereNotAgreedOnAreRefused) {
  Primary primary(13, kStorePages);
  Feeder feeder;
  const Epoch first = primary.next(1);
  ASSERT_TRUE(feeder.whole(1, first).ok());
  Status status;
  for (uint64_t number = 2; status.ok() && number < 50; ++number) {
    feeder.store.finish();
    const Bytes before = feeder.memory;
    status = feeder.whole(number, primary.next(1));
    if (!status.ok()) {
      EXPECT_EQ(feeder.memory, before);
    }
  }
  EXPECT_EQ(status.code(), Code::corrupt) << status.message();
}

TEST(BackupStore, AFrameWithADamagedDeltaIsRefusedWhole) {
  Primary primary(14, kStorePages);
  const Epoch first = primary.next(4), second = primary.next(2);
  ASSERT_GT(primary.deltas(), 5u);
  std::mt19937 random(14);
  uint64_t at_once = 0;
  for (int i = 0; i < 400; ++i) {
    Feeder feeder(/*deltas=*/true);
    ASSERT_TRUE(feeder.whole(1, first).ok());
    Epoch damaged = second;
    Bytes& body = damaged.frames[random() % damaged.frames.size()].body;
    body[random() % body.size()] ^= static_cast<std::byte>(1 << random() % 8);
    Status status;
    for (const Frame& frame : damaged.frames) {
      if (status.ok()) status = feeder.add(2, frame);
    }
    at_once += status.ok() ? 0 : 1;
    if (status.ok()) status = feeder.commit(2, feeder.sums(second));
    EXPECT_FALSE(status.ok());
    feeder.store.drop_open();
    feeder.store.finish();
    ASSERT_EQ(feeder.memory, first.memory);
    ASSERT_TRUE(same(feeder.store.device(), first.device));
  }
  EXPECT_GT(at_once, 20u) << "masks and lengths are found before the COMMIT";
}

TEST(BackupFrameFifo, KeepsFramesInOrderAndReusesItsChunks) {
  std::mt19937 random(11);
  FrameFifo fifo;
  std::deque<Bytes> model;
  for (int i = 0; i < 3000; ++i) {
    if (random() % 2 == 0 && model.size() < 40) {
      model.push_back(Bytes(random() % (1u << 20), static_cast<std::byte>(random())));
      fifo.push(model.back());
    } else if (!model.empty() && random() % 8 == 0) {
      model.pop_back();
      fifo.pop_back();
    } else if (!model.empty()) {
      ASSERT_TRUE(same(fifo.front(), model.front()));
      model.pop_front();
      fifo.pop_front();
    }
    ASSERT_EQ(fifo.frames(), model.size());
  }
  while (fifo.frames() > 0) fifo.pop_front();
  EXPECT_EQ(fifo.bytes(), 0u);
  EXPECT_LE(fifo.memory_bytes(), (1 + FrameFifo::kSpareChunks) * FrameFifo::kChunkBytes);
}

}  // namespace
}  // namespace remusd::backup
