// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "disk/disks.h"
#include "tests/assert_ok.h"
#include "tests/disk_nbd_client.h"
#include "tests/patience.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

constexpr uint64_t kLength = 1 << 20;

class DisksTest : public testing::Test {
 protected:
  std::string at(const std::string& name) const { return folder_.path() + "/" + name; }
  std::vector<DiskFile> one(uint64_t bytes = 0) const {
    return {{"disk0", at("disk"), at("socket"), bytes, false}};
  }
  void make_disk(uint64_t bytes = kLength) {
    std::ofstream(at("disk"), std::ios::app).close();
    std::filesystem::resize_file(at("disk"), bytes);
  }
  DisksOptions options() const { return {8u << 20, at("journal")}; }

  void open_replica() {
    ReplicaOptions replica;
    replica.generation = 1;
    auto disks = Disks::open_replica(one(kLength), options(), replica, [this] { ++told_; });
    ASSERT_OK(disks);
    disks_ = *std::move(disks);
    ASSERT_OK(disks_->replica()->commit(1, {body(0, 1)}, 1));
  }
  /// A run of 4096 bytes.
  static ckpt::Bytes body(uint64_t offset, unsigned value) {
    ckpt::DiskBody body;
    const ckpt::Bytes data(4096, std::byte(value));
    EXPECT_TRUE(body.add({0, offset, 4096, ckpt::DiskEncoding::raw, data}));
    ckpt::Bytes out;
    body.take(&out);
    return out;
  }
  std::byte on_disk(uint64_t offset) const {
    std::ifstream file(at("disk"), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    return static_cast<std::byte>(file.get());
  }

  TemporaryDirectory folder_;
  std::atomic<int> told_{0};
  std::unique_ptr<Disks> disks_;
};

TEST_F(DisksTest, AGuestsDiskIsServedAndItsChangesAreTapped) {
  make_disk();
  auto disks = Disks::open(one(), options());
  ASSERT_OK(disks);
  EXPECT_FALSE((*disks)->connected());
  NbdClient client(at("socket"));
  ASSERT_TRUE(client.enter());
  EXPECT_TRUE(eventually([&] { return (*disks)->connected(); }));
  (*disks)->tap().mark([](const Change&) {});
  (*disks)->tap().log();
  EXPECT_EQ(client.write_now(0, filled(100, 7)), nbd::Error::none);
  EXPECT_EQ((*disks)->tap().stats().written_bytes, 100u);
  EXPECT_EQ(on_disk(0), std::byte{7});
  EXPECT_EQ(Disks::open(one(), options()).status().code(), Code::unsafe) << "somebody has it";
}

TEST_F(DisksTest, AReplicasFileIsMadeAndFollowsTheGuestsSize) {
  open_replica();
  EXPECT_EQ(std::filesystem::file_size(at("disk")), kLength);
  disks_.reset();
  auto grown = Disks::open_replica(one(2 * kLength), options(), {}, {});
  ASSERT_OK(grown);
  EXPECT_EQ(std::filesystem::file_size(at("disk")), 2 * kLength);
  EXPECT_EQ((*grown)->sizes(), std::vector<uint64_t>{2 * kLength});
  grown->reset();
  // Of one that has more the rest is nobody's business.
  open_replica();
  EXPECT_EQ(disks_->sizes(), std::vector<uint64_t>{kLength});
  EXPECT_EQ(std::filesystem::file_size(at("disk")), 2 * kLength);
  disks_.reset();
  EXPECT_EQ(Disks::open_replica(one(kLength + 1), options(), {}, {}).status().code(), Code::unsafe);
}

TEST_F(DisksTest, ADiskThatGrowsIsSeenAtTheNextStart) {
  make_disk();
  auto disks = Disks::open(one(), options());
  ASSERT_OK(disks);
  make_disk(2 * kLength);
  EXPECT_EQ((*disks)->sizes(), std::vector<uint64_t>{kLength});
  const auto now = (*disks)->files()[0].bytes_now();
  ASSERT_OK(now);
  EXPECT_EQ(*now, 2 * kLength);
  NbdClient client(at("socket"));
  ASSERT_TRUE(client.enter());
  EXPECT_EQ(client.write_now(kLength - 512, filled(512, 7)), nbd::Error::none);
  EXPECT_EQ(client.write_now(kLength, filled(512, 7)), nbd::Error::nospc);
  EXPECT_EQ(client.ask_now(nbd::Command::flush, 0, 0).error, nbd::Error::none);
  disks->reset();
  disks = Disks::open(one(), options());
  ASSERT_OK(disks);
  EXPECT_EQ((*disks)->sizes(), std::vector<uint64_t>{2 * kLength});
}

TEST_F(DisksTest, ADiskThatGotShorterIsAnErrorForTheGuest) {
  make_disk();
  auto disks = Disks::open(one(), options());
  ASSERT_OK(disks);
  NbdClient client(at("socket"));
  ASSERT_TRUE(client.enter());
  EXPECT_EQ(client.write_now(kLength / 2, filled(512, 7)), nbd::Error::none);
  make_disk(kLength / 2);
  EXPECT_EQ(client.ask_now(nbd::Command::read, kLength / 2, 512).error, nbd::Error::io);
  EXPECT_EQ(client.ask_now(nbd::Command::read, 0, 512).error, nbd::Error::none);
  EXPECT_EQ(client.ask_now(nbd::Command::flush, 0, 0).error, nbd::Error::io);
  // Made long again, it has still lost what was there.
  make_disk(kLength);
  EXPECT_EQ(client.ask_now(nbd::Command::flush, 0, 0).error, nbd::Error::io);
}

TEST_F(DisksTest, APromotedGuestFindsWhatWasCommittedAndNobodyElseIsTold) {
  open_replica();
  ASSERT_OK(disks_->replica()->commit(2, {body(8192, 2)}, 1));
  ASSERT_OK(disks_->promote(Clock::now() + kPatience));
  const int told = told_;
  EXPECT_EQ(disks_->replica(), nullptr);
  EXPECT_EQ(on_disk(0), std::byte{1});
  EXPECT_EQ(on_disk(8192), std::byte{2});
  NbdClient client(at("socket"));
  ASSERT_TRUE(client.enter());
  EXPECT_EQ(client.write_now(0, filled(4096, 3)), nbd::Error::none);
  // Held until the journal has let go of the disks, and then answered.
  EXPECT_EQ(client.ask_now(nbd::Command::flush, 0, 0).error, nbd::Error::none);
  EXPECT_EQ(told_, told) << "whoever asked may be gone";
}

TEST_F(DisksTest, WhatAReplicaLeftIsBroughtToTheDisksBeforeAGuestRuns) {
  open_replica();
  ASSERT_OK(disks_->replica()->commit(2, {body(8192, 2)}, 1));
  EXPECT_TRUE(eventually([&] { return disks_->replica_stats().durable_epoch == 2; }));
  disks_.reset();
  // As if the power had gone before the run reached the disk.
  std::fstream(at("disk"), std::ios::binary | std::ios::in | std::ios::out).seekp(8192).put('\0');
  ASSERT_OK(Disks::open(one(), options()));
  EXPECT_EQ(on_disk(8192), std::byte{2});
  EXPECT_FALSE(std::filesystem::exists(at("journal"))) << "the guest's own writes are none of its business";
}

TEST_F(DisksTest, HalfAFirstSyncIsNobodysDisk) {
  ReplicaOptions replica;
  replica.generation = 1;
  auto disks = Disks::open_replica(one(kLength), options(), replica, {});
  ASSERT_OK(disks);
  ASSERT_OK((*disks)->replica()->sync(body(0, 1)));
  EXPECT_TRUE(eventually([&] { return (*disks)->replica_stats().applied_bytes > 0; }));
  disks->reset();
  EXPECT_EQ(Disks::open(one(), options()).status().code(), Code::unsafe);
}

}  // namespace
}  // namespace remusd::disk
