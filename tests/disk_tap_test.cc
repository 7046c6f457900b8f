// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cerrno>
#include <vector>

#include "disk/tap.h"

namespace remusd::disk {
namespace {

constexpr uint64_t kLimit = 4u << 20;

class TapTest : public testing::Test {
 protected:
  TapTest() {
    tap_.on_room([this] { ++retries_; });
  }

  Change write(uint64_t offset, uint64_t bytes = 4096) {
    return {0, ChangeKind::write, offset, bytes, ++sequence_};
  }
  bool begin(const Change& change) { return tap_.changing(change, ckpt::Bytes(change.bytes, std::byte{1})); }
  /// Begun and done.
  bool change(uint64_t offset, uint64_t bytes = 4096) {
    const Change one = write(offset, bytes);
    if (!begin(one)) {
      --sequence_;
      return false;
    }
    tap_.changed(one);
    return true;
  }
  void protect() {
    tap_.mark([this](const Change& one) { marked_.push_back(one.offset); });
    tap_.log();
  }
  /// Bytes that `epoch` changes.
  uint64_t sent(uint64_t epoch) {
    ckpt::Bytes out;
    uint64_t all = 0, raw_bytes = 0;
    while (tap_.next(epoch, &out, &raw_bytes)) all += raw_bytes;
    return all;
  }

  Tap tap_{kLimit};
  uint64_t sequence_ = 0;
  int retries_ = 0;
  std::vector<uint64_t> marked_;
};

TEST_F(TapTest, AnUnprotectedGuestsChangesPassAndAreNotKept) {
  EXPECT_TRUE(change(0, 64u << 20));
  EXPECT_EQ(tap_.stats().held_bytes, 0u);
  EXPECT_FALSE(tap_.flush_may_wait());
}

TEST_F(TapTest, AChangeBelongsToTheEpochThatIsSealedNext) {
  protect();
  EXPECT_TRUE(change(0));
  tap_.seal(1);
  EXPECT_TRUE(change(4096));
  EXPECT_TRUE(change(8192));
  tap_.seal(2);
  tap_.seal(3);
  EXPECT_EQ(sent(1), 4096u);
  EXPECT_EQ(sent(2), 2 * 4096u);
  EXPECT_EQ(sent(3), 0u);
  EXPECT_TRUE(marked_.empty());
  tap_.acked(3);
  EXPECT_EQ(tap_.stats().held_bytes, 0u);
  EXPECT_EQ(tap_.stats().committed_bytes, 3 * 4096u);
}

TEST_F(TapTest, WhatIsWrittenWhileTheDiskIsCopiedIsMarkedAtItsBeginningAndItsEnd) {
  tap_.mark([this](const Change& one) { marked_.push_back(one.offset); });
  const Change slow = write(512);
  ASSERT_TRUE(begin(slow));
  EXPECT_EQ(marked_, (std::vector<uint64_t>{512}));
  tap_.log();
  EXPECT_EQ(tap_.unlogged(), 1u) << "nobody may believe yet that all is copied";
  EXPECT_TRUE(change(4096)) << "logged";
  tap_.changed(slow);
  EXPECT_EQ(marked_, (std::vector<uint64_t>{512, 512}));
  EXPECT_EQ(tap_.unlogged(), 0u);
  tap_.seal(1);
  EXPECT_EQ(sent(1), 4096u);
}

TEST_F(TapTest, AChangeThatAnEarlierSessionLoggedIsMarkedByTheNextOne) {
  protect();
  const Change slow = write(512);
  ASSERT_TRUE(begin(slow));
  tap_.off();
  protect();
  EXPECT_EQ(tap_.unlogged(), 1u);
  tap_.changed(slow);
  EXPECT_EQ(marked_, (std::vector<uint64_t>{512}));
}

TEST_F(TapTest, AtTheBoundChangesWaitUntilAnEpochIsAcknowledged) {
  protect();
  uint64_t at = 0;
  while (change(at)) at += 4096;
  EXPECT_LE(tap_.stats().held_bytes, kLimit);
  EXPECT_GT(at, kLimit / 2);
  EXPECT_EQ(tap_.stats().waits, 1u);
  EXPECT_EQ(retries_, 0);
  tap_.seal(1);
  EXPECT_FALSE(change(at)) << "sent is not acknowledged";
  (void)sent(1);
  tap_.acked(1);
  EXPECT_EQ(retries_, 1);
  EXPECT_TRUE(change(at));
}

TEST_F(TapTest, InAPauseEveryChangeIsTakenAndAFlushWaitsForNobody) {
  protect();
  uint64_t at = 0;
  while (change(at)) at += 4096;
  EXPECT_FALSE(tap_.flush_may_wait());
  tap_.pausing();
  EXPECT_EQ(retries_, 1) << "what waited keeps the guest from standing";
  EXPECT_TRUE(change(at));
  EXPECT_TRUE(tap_.flush_may_wait());
  tap_.seal(1);
  tap_.resumed();
  EXPECT_FALSE(tap_.flush_may_wait());
  EXPECT_FALSE(change(at + 4096));
  EXPECT_EQ(sent(1), at + 4096);
}

TEST_F(TapTest, AChangeLargerThanTheBoundIsTakenAlone) {
  protect();
  EXPECT_TRUE(change(0, 2 * kLimit));
  EXPECT_FALSE(change(0));
  tap_.seal(1);
  tap_.acked(1);
  EXPECT_TRUE(change(0));
}

TEST_F(TapTest, TheEndOfProtectionLetsEverythingPass) {
  protect();
  for (uint64_t at = 0; change(at); at += 4096) {
  }
  tap_.seal(1);
  tap_.off();
  EXPECT_EQ(retries_, 1);
  EXPECT_EQ(tap_.stats().held_bytes, 0u);
  EXPECT_EQ(sent(1), 0u);
  EXPECT_TRUE(change(0, 64u << 20));
  tap_.seal(2);  // a pause that was under way
}

TEST_F(TapTest, AFlushThatFailedLaterIsTold) {
  tap_.flushed_later(0);
  EXPECT_EQ(tap_.stats().flush_error, 0);
  tap_.flushed_later(EIO);
  EXPECT_EQ(tap_.stats().flush_error, EIO);
}

}  // namespace
}  // namespace remusd::disk
