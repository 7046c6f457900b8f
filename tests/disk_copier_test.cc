// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <future>
#include <random>

#include "disk/copier.h"
#include "tests/assert_ok.h"
#include "tests/patience.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;

constexpr uint64_t kDisk = 24u << 20;

class CopierTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const uint64_t bytes : {kDisk, uint64_t{512} * 3}) {
      const std::string path = folder_.path() + "/" + std::to_string(bytes);
      const ScopedFd made(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
      ASSERT_EQ(::ftruncate(made.get(), static_cast<off_t>(bytes)), 0);
      auto file = LocalFile::open(path);
      ASSERT_OK(file);
      files_.push_back(*std::move(file));
      sizes_.push_back(bytes);
      // What an earlier guest left over there.
      replica_.emplace_back(bytes, std::byte{0x99});
    }
  }

  void fill(uint64_t offset, uint64_t bytes, uint32_t seed) {
    std::mt19937 random(seed);
    Bytes data(bytes);
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    ASSERT_OK(files_[0].write(offset, data));
  }
  /// As the server does it.
  void guest_writes(uint64_t offset, uint64_t bytes, uint8_t value) {
    const Bytes data(bytes, std::byte{value});
    const Change change{0, ChangeKind::write, offset, bytes, ++sequence_};
    ASSERT_TRUE(tap_.changing(change, data));
    ASSERT_OK(files_[0].write(offset, data));
    tap_.changed(change);
  }

  void apply(const Bytes& body) {
    uint64_t raw_bytes = 0;
    ASSERT_OK(ckpt::check_disk(body, sizes_, &raw_bytes));
    ASSERT_OK(ckpt::apply_disk(body, [&](const ckpt::DiskRun& run) {
      std::byte* at = replica_[run.disk].data() + run.offset;
      if (run.encoding == ckpt::DiskEncoding::raw) {
        std::memcpy(at, run.data.data(), run.bytes);
      } else {
        std::memset(at, 0, run.bytes);
      }
      return Status();
    }));
  }
  /// The ship thread's part, until `done` is.
  template <typename Future>
  void pull_until(Copier* copier, Future* done) {
    const Time deadline = Clock::now() + kPatience;
    for (;;) {
      const bool over = done->wait_for(std::chrono::milliseconds(0)) == std::future_status::ready;
      Bytes body;
      uint64_t raw_bytes = 0;
      if (copier->next(&body, &raw_bytes)) {
        sent_ += body.size();
        apply(body);
      } else if (over) {
        return;
      } else {
        ASSERT_LT(Clock::now(), deadline);
        done->wait_for(std::chrono::milliseconds(1));
      }
    }
  }
  void take_epoch_1() {
    Bytes body;
    uint64_t raw_bytes = 0;
    for (; tap_.next(1, &body, &raw_bytes); body.clear()) apply(body);
  }
  void expect_equal() {
    for (size_t disk = 0; disk < files_.size(); ++disk) {
      Bytes here(sizes_[disk]);
      ASSERT_OK(files_[disk].read(0, here));
      EXPECT_TRUE(here == replica_[disk]) << "disk " << disk;
    }
  }

  TemporaryDirectory folder_;
  std::vector<LocalFile> files_;
  std::vector<uint64_t> sizes_;
  std::vector<Bytes> replica_;
  Tap tap_{uint64_t{64} << 20};
  uint64_t sequence_ = 0;
  uint64_t sent_ = 0;
};

TEST_F(CopierTest, ASparseDiskCostsItsDataAndEndsUpEqualWhateverWasThere) {
  fill(1u << 20, 2u << 20, 1);
  Copier copier(files_, tap_, 0, [] {});
  auto done = std::async(std::launch::async, [&] {
    const Status status = copier.settle();
    return status.ok() ? copier.finish() : status;
  });
  pull_until(&copier, &done);
  ASSERT_OK(done.get());
  expect_equal();
  EXPECT_LT(sent_, (2u << 20) * 105 / 100);
  const CopyProgress progress = copier.progress();
  EXPECT_EQ(progress.total_bytes, kDisk + 1536);
  EXPECT_EQ(progress.copied_bytes, progress.total_bytes);
  EXPECT_EQ(progress.sent_bytes, sent_);
}

TEST_F(CopierTest, WhatIsWrittenMeanwhileIsInTheCopyOrInTheFirstEpoch) {
  fill(0, kDisk, 2);
  Copier copier(files_, tap_, 0, [] {});
  std::atomic<bool> over = false;
  auto guest = std::async(std::launch::async, [&] {
    std::mt19937 random(3);
    while (!over) guest_writes(random() % (kDisk / 512 - 8) * 512, 4096, static_cast<uint8_t>(random()));
  });
  auto done = std::async(std::launch::async, [&] {
    const Status status = copier.settle();
    return status.ok() ? copier.finish() : status;
  });
  pull_until(&copier, &done);
  ASSERT_OK(done.get());
  over = true;
  guest.get();
  tap_.seal(1);
  take_epoch_1();
  expect_equal();
}

TEST_F(CopierTest, AChangeUnderWayWhenTheLogBeginsIsWaitedFor) {
  Copier copier(files_, tap_, 0, [] {});
  const Change slow{0, ChangeKind::write, 8192, 4096, ++sequence_};
  const Bytes data(4096, std::byte{5});
  ASSERT_TRUE(tap_.changing(slow, data));
  auto done = std::async(std::launch::async, [&] {
    const Status status = copier.settle();
    return status.ok() ? copier.finish() : status;
  });
  // Long enough for passes over it.
  const Time until = Clock::now() + std::chrono::milliseconds(50);
  while (Clock::now() < until) {
    Bytes body;
    uint64_t raw_bytes = 0;
    if (copier.next(&body, &raw_bytes)) apply(body);
    ASSERT_EQ(done.wait_for(std::chrono::milliseconds(1)), std::future_status::timeout);
  }
  ASSERT_OK(files_[0].write(8192, data));
  tap_.changed(slow);
  pull_until(&copier, &done);
  ASSERT_OK(done.get());
  expect_equal();
}

TEST_F(CopierTest, AStopEndsItWhereverItIs) {
  fill(0, kDisk, 4);
  Copier copier(files_, tap_, 0, [] {});
  auto done = std::async(std::launch::async, [&] { return copier.settle(); });
  copier.stop();
  EXPECT_EQ(done.get().code(), Code::unavailable);
  EXPECT_EQ(copier.finish().code(), Code::unavailable);
}

TEST_F(CopierTest, ADiskThatCannotBeReadIsTold) {
  fill(0, kDisk, 5);
  ASSERT_EQ(::truncate(files_[0].path().c_str(), 4096), 0);
  Copier copier(files_, tap_, 0, [] {});
  EXPECT_EQ(copier.settle().code(), Code::io);
  EXPECT_EQ(copier.finish().code(), Code::io);
}

TEST_F(CopierTest, ARateIsKept) {
  fill(0, 8u << 20, 6);
  const Time began = Clock::now();
  Copier copier(files_, tap_, 64u << 20, [] {});
  auto done = std::async(std::launch::async, [&] { return copier.settle(); });
  pull_until(&copier, &done);
  ASSERT_OK(done.get());
  // The last body need not have been paid for.
  EXPECT_GT(to_ms(Clock::now() - began), 1000.0 * (8 - 2 * 2) / 64);
}

}  // namespace
}  // namespace remusd::disk
