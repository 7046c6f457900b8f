// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the backup keeps of held disks, together with the primary's side that writes it: whatever is lost
// when, the storage ends as the newest acknowledged epoch.
#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <random>

#include "backup/disk_feed.h"
#include "backup/held_epochs.h"
#include "disk/settler.h"
#include "tests/assert_ok.h"
#include "tests/disk_power.h"
#include "tests/patience.h"

namespace remusd::backup {
namespace {

using disk::Change;
using disk::ChangeKind;

constexpr uint64_t kHeldLength = 64u << 10;

ckpt::Bytes held_body(uint16_t disk, uint64_t offset, uint32_t bytes, unsigned value) {
  ckpt::DiskBody body;
  EXPECT_TRUE(body.add({disk, offset, bytes, ckpt::DiskEncoding::raw, ckpt::Bytes(bytes, std::byte(value))}));
  ckpt::Bytes out;
  body.take(&out);
  return out;
}

/// A guest with one held disk on its primary, and what the backup keeps of it.
class HeldPair {
 public:
  explicit HeldPair(uint32_t seed)
      : random_(seed), file_(power_.add("disk", kHeldLength)), model_(kHeldLength) {
    tap_.on_room([] {});
    disk::SettlerOptions options;
    options.disks = {file_};
    options.drained = [this] { drained_ = true; };
    settler_ = std::make_unique<disk::Settler>(tap_, std::move(options));
    tap_.mark([](const Change&) {});
    tap_.log();
    tap_.pausing();
    seal();
    tap_.resumed();
    ack(1);
  }
  void write_some() {
    const int count = static_cast<int>(random_() % 6);
    for (int i = 0; i < count; ++i) {
      Change change{0, ChangeKind::write, random_() % 40 * 512, 1 + random_() % 9000, ++sequence_};
      ckpt::Bytes data;
      const auto value = static_cast<unsigned>(1 + random_() % 255);
      if (random_() % 4 == 0) change.kind = random_() % 2 ? ChangeKind::zero : ChangeKind::punch;
      if (change.kind == ChangeKind::write) data.assign(change.bytes, std::byte(value));
      ASSERT_TRUE(tap_.changing(change, data));
      const disk::Fate fate = tap_.fate(change);
      tap_.changed(change);
      if (power_.off() && fate == disk::Fate::refuse) return;
      ASSERT_EQ(fate, disk::Fate::keep);
      std::fill_n(model_.begin() + static_cast<ptrdiff_t>(change.offset), change.bytes,
                  data.empty() ? std::byte{0} : std::byte(value));
    }
  }
  void seal() {
    tap_.seal(++sealed_);
    ckpt::Bytes body;
    uint64_t raw_bytes = 0;
    while (tap_.next(sealed_, &body, &raw_bytes)) {
      sent_[sealed_].push_back(std::move(body));
      body.clear();
    }
    states_[sealed_] = model_;
  }
  void ack(uint64_t epoch) {
    for (; acked_ < epoch; ++acked_)
      for (ckpt::Bytes& body : sent_[acked_ + 1]) kept_.add(acked_ + 1, std::move(body));
    tap_.acked(epoch);
  }
  /// SETTLED, of what is so far.
  void tell() {
    const uint64_t epoch = tap_.settled_epoch();
    if (epoch > kept_.settled_epoch()) kept_.settled(epoch);
  }
  /// All that is acknowledged is on the storage, or cannot be.
  void await_settled() {
    ASSERT_TRUE(eventually([&] { return tap_.stats().held_bytes == 0 || !tap_.hold_failure().ok(); }));
  }
  /// The primary dies, its storage loses what was not flushed, and the backup takes over.
  void fail_over(uint32_t seed) {
    settler_.reset();
    power_.cycle(seed);
    ASSERT_OK(kept_.apply({file_}));
    EXPECT_EQ(file_->content(), states_.at(acked_)) << "epoch " << acked_;
    power_.cycle(seed + 1);
    EXPECT_EQ(file_->content(), states_.at(acked_)) << "and it was flushed";
  }

  std::mt19937 random_;
  disk::Power power_;
  std::shared_ptr<disk::PowerMedium> file_;
  disk::Tap tap_{1u << 30, 1};
  HeldEpochs kept_{8u << 20};
  std::unique_ptr<disk::Settler> settler_;
  std::atomic<bool> drained_ = false;
  std::vector<std::byte> model_;
  std::map<uint64_t, std::vector<std::byte>> states_;
  std::map<uint64_t, std::vector<ckpt::Bytes>> sent_;
  uint64_t sequence_ = 0, sealed_ = 0, acked_ = 0;
};

/// One life, cut at the given operation of its storage. False: it was not reached.
bool live_until(uint32_t seed, uint64_t cut) {
  HeldPair pair(seed);
  pair.power_.cut_at(cut);
  for (int step = 0; step < 12 && !pair.power_.off(); ++step) {
    pair.write_some();
    pair.seal();
    if (pair.random_() % 3 != 0) pair.ack(pair.acked_ + 1 + pair.random_() % (pair.sealed_ - pair.acked_));
    if (pair.random_() % 2 == 0 && pair.acked_ == pair.sealed_) pair.await_settled();
    if (pair.random_() % 2 == 0) pair.tell();
  }
  if (pair.acked_ == pair.sealed_) pair.await_settled();
  const bool reached = pair.power_.off();
  pair.write_some();  // nobody hears of it
  pair.fail_over(seed);
  return reached;
}

TEST(HeldEpochs, WhateverIsLostWhenTheStorageEndsAsTheAcknowledgedEpoch) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    for (uint64_t cut = 0; live_until(seed, cut) && !testing::Test::HasFailure(); ++cut) {
    }
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
}

TEST(HeldEpochs, AfterTheRightToRunWasWonEverythingIsWritten) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    HeldPair pair(seed);
    for (int step = 0; step < 8; ++step) {
      pair.write_some();
      pair.seal();
      if (step % 3 == 0) pair.ack(pair.sealed_ - 1);
    }
    pair.write_some();
    pair.tap_.freeze();
    ASSERT_TRUE(eventually([&] { return pair.tap_.quiet(); }));
    const auto frozen = pair.file_->content();
    pair.ack(pair.sealed_);
    pair.write_some();
    EXPECT_EQ(pair.file_->content(), frozen);
    pair.tap_.off();
    pair.tap_.won();
    ASSERT_TRUE(pair.tap_.await_passing(Clock::now() + kPatience));
    EXPECT_TRUE(pair.drained_);
    pair.power_.cycle(seed);
    EXPECT_EQ(pair.file_->content(), pair.model_);
  }
}

TEST(HeldEpochs, AWriteThatFailsBreaksTheDiskAndNothingIsForgotten) {
  for (uint64_t operation = 0; operation < 2; ++operation) {  // the write, the flush
    HeldPair pair(1);
    pair.power_.fail_at(operation, EIO);
    const Change change{0, ChangeKind::write, 0, 4096, ++pair.sequence_};
    ASSERT_TRUE(pair.tap_.changing(change, ckpt::Bytes(4096, std::byte{7})));
    pair.tap_.changed(change);
    pair.seal();
    pair.ack(pair.sealed_);
    ASSERT_TRUE(eventually([&] { return !pair.tap_.hold_failure().ok(); }));
    EXPECT_EQ(pair.tap_.flush_fate(0), disk::FlushFate::refuse);
    Change next = change;
    next.sequence = ++pair.sequence_;
    ASSERT_TRUE(pair.tap_.changing(next, ckpt::Bytes(4096, std::byte{8})));
    EXPECT_EQ(pair.tap_.fate(next), disk::Fate::refuse);
    pair.tap_.changed(next);
    ASSERT_TRUE(eventually([&] { return pair.tap_.stats().held_bytes < 1024; }));
    const auto kept = pair.tap_.kept(0, 0, 4096, true);
    ASSERT_NE(kept, nullptr);
    EXPECT_EQ(kept->data, std::vector<std::byte>(4096, std::byte{7})) << "reads see what was acknowledged";
    EXPECT_LT(pair.tap_.settled_epoch(), pair.sealed_) << "the backup keeps it";
    pair.tap_.freeze();
    pair.tap_.off();
    pair.tap_.won();
    EXPECT_TRUE(pair.tap_.await_passing(Clock::now() + kPatience)) << "nobody waits for a broken disk";
    EXPECT_FALSE(pair.tap_.may_log().ok()) << "and it is not protected again";
  }
}

TEST(HeldEpochs, AFailureAtThePromotionIsTold) {
  disk::Power power;
  const auto file = power.add("disk", kHeldLength);
  HeldEpochs kept(1 << 20);
  kept.add(1, held_body(0, 0, 4096, 1));
  for (uint64_t operation = 0; operation < 2; ++operation) {
    power.fail_at(operation, EIO);
    EXPECT_EQ(kept.apply({file}).code(), Code::io);
  }
  EXPECT_TRUE(kept.apply({file}).ok());
}

TEST(HeldEpochs, WhatIsSettledIsForgottenAlsoWhenItComesLater) {
  HeldEpochs kept(1 << 20);
  kept.add(1, held_body(0, 0, 4096, 1));
  kept.add(2, held_body(0, 0, 4096, 2));
  kept.settled(1);
  const uint64_t bytes = kept.bytes();
  EXPECT_GT(bytes, 0u);
  kept.settled(3);
  EXPECT_EQ(kept.bytes(), 0u);
  kept.add(3, held_body(0, 0, 4096, 3));
  EXPECT_EQ(kept.bytes(), 0u);
  kept.add(4, held_body(0, 0, 4096, 4));
  EXPECT_EQ(kept.bytes(), bytes);
}

TEST(HeldEpochs, MoreThanTheHardLimitIsToldOf) {
  HeldEpochs kept(1000);
  const ckpt::Bytes body = held_body(0, 0, 4096, 1);
  for (uint64_t epoch = 1; kept.bytes() <= HeldEpochs::kHardLimit * 1000; ++epoch) {
    EXPECT_FALSE(kept.over_limit());
    kept.add(epoch, body);
  }
  EXPECT_TRUE(kept.over_limit());
}

TEST(HeldEpochs, ABodyIsOfHeldDisksOrOfOthers) {
  ckpt::DiskBody mixed;
  for (uint16_t disk = 0; disk < 2; ++disk)
    ASSERT_TRUE(mixed.add({disk, 0, 512, ckpt::DiskEncoding::zero, {}}));
  ckpt::Bytes body;
  mixed.take(&body);
  EXPECT_EQ(ckpt::is_held(body, 2).status().code(), Code::corrupt);
  EXPECT_TRUE(*ckpt::is_held(body, 3));
  EXPECT_FALSE(*ckpt::is_held(body, 4));
}

TEST(HeldEpochs, TheTapNeverMixesThem) {
  disk::Tap tap(8u << 20, 0b0110);
  tap.mark([](const Change&) {});
  tap.log();
  uint64_t sequence = 0;
  for (size_t disk = 0; disk < 5; ++disk)
    ASSERT_TRUE(tap.changing({disk, ChangeKind::write, 0, 512, ++sequence}, ckpt::Bytes(512, std::byte{1})));
  tap.seal(1);
  std::vector<bool> held;
  ckpt::Bytes body;
  uint64_t raw_bytes = 0, all = 0;
  while (tap.next(1, &body, &raw_bytes)) {
    const auto of_held = ckpt::is_held(body, 0b0110);
    ASSERT_TRUE(of_held.ok());
    held.push_back(*of_held);
    all += raw_bytes;
    body.clear();
  }
  EXPECT_EQ(held, (std::vector<bool>{false, true, false}));
  EXPECT_EQ(all, 5 * 512u);
}

TEST(HeldEpochs, TheFeedSendsEachBodyItsWay) {
  DiskFeed feed(nullptr, 1, 1, 1 << 20);
  EXPECT_TRUE(feed.holds());
  feed.sync(held_body(0, 0, 4096, 1));
  feed.commit(1, {});
  feed.commit(2, {held_body(0, 0, 4096, 2)});
  EXPECT_FALSE(feed.behind());
  disk::Power power;
  const auto file = power.add("disk", kHeldLength);
  ASSERT_OK(feed.kept().apply({file}));
  EXPECT_EQ(file->content()[0], std::byte{2});
}

}  // namespace
}  // namespace remusd::backup
