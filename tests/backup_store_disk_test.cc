// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Disks in the store: they are committed with the pages of their epoch, or not at all [4, 5].
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backup/store.h"
#include "ckpt/disk_codec.h"
#include "tests/assert_ok.h"

namespace remusd::backup {
namespace {

using ckpt::Bytes;
using ckpt::FrameType;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kDisk = 1 << 20;

Bytes disk_body(uint64_t offset, unsigned value) {
  ckpt::DiskBody body;
  const Bytes data(4096, std::byte(value));
  EXPECT_TRUE(body.add({0, offset, 4096, ckpt::DiskEncoding::raw, data}));
  Bytes out;
  body.take(&out);
  return out;
}

/// Notes what it is given.
struct Sink final : DiskSink {
  void sync(Bytes body) override { synced.push_back(std::move(body)); }
  void commit(uint64_t epoch, std::vector<Bytes> bodies) override {
    epochs.push_back(epoch);
    committed.insert(committed.end(), bodies.begin(), bodies.end());
  }
  std::vector<Bytes> synced, committed;
  std::vector<uint64_t> epochs;
};

class StoreDisks : public testing::Test {
 protected:
  StoreDisks() {
    store_.use_disks({kDisk}, &sink_);
    add_device();
  }

  Status add(FrameType type, const Bytes& body) {
    ckpt::FrameView view;
    view.header.type = static_cast<uint16_t>(type);
    view.header.epoch = store_.staged() + 1;
    view.header.checksum = ++checksum_;
    view.body = body;
    const Status status = store_.add(view);
    if (status.ok()) digest_.add(checksum_);
    return status;
  }
  Status add_disk(uint64_t offset, unsigned value) {
    raw_bytes_ += 4096;
    return add(FrameType::disk, disk_body(offset, value));
  }
  void add_device() {
    Bytes body;
    uint64_t next = 0;
    ASSERT_OK(ckpt::append_blob_part(Bytes(100, std::byte{5}), 0, &body, &next));
    ASSERT_OK(add(FrameType::device, body));
  }
  Status commit() {
    ckpt::Commit sums;
    sums.frames = digest_.frames();
    sums.device_bytes = 100;
    sums.raw_bytes = 100 + raw_bytes_;
    sums.digest = digest_.value();
    Bytes body;
    ckpt::encode(sums, &body);
    ckpt::FrameView view;
    view.header.type = static_cast<uint16_t>(FrameType::commit);
    view.header.epoch = store_.staged() + 1;
    view.body = body;
    ckpt::Commit commit;
    const Status status = store_.commit(view, &commit);
    digest_ = {};
    raw_bytes_ = 0;
    return status;
  }

  Sink sink_;
  Bytes memory_ = Bytes(4 * kPageSize);
  Store store_{memory_, 64u << 10};
  ckpt::EpochDigest digest_;
  uint64_t checksum_ = 0, raw_bytes_ = 0;
};

TEST_F(StoreDisks, TheFirstEpochsGoOnAtOnceAndLaterOnesWithTheirCommit) {
  ASSERT_OK(add_disk(0, 1));
  EXPECT_EQ(sink_.synced.size(), 1u);
  ASSERT_OK(commit());
  EXPECT_THAT(sink_.epochs, ElementsAre(1));
  add_device();
  ASSERT_OK(add_disk(4096, 2));
  ASSERT_OK(add_disk(8192, 3));
  store_.finish();
  EXPECT_TRUE(sink_.committed.empty()) << "half an epoch is nobody's";
  EXPECT_GT(store_.staged_bytes(), 0u);
  ASSERT_OK(commit());
  store_.finish();
  EXPECT_THAT(sink_.epochs, ElementsAre(1, 2));
  EXPECT_THAT(sink_.committed, ElementsAre(disk_body(4096, 2), disk_body(8192, 3)));
  EXPECT_EQ(store_.staged_bytes(), 0u);
}

TEST_F(StoreDisks, AnEpochThatIsDroppedIsNeverTold) {
  ASSERT_OK(commit());
  add_device();
  ASSERT_OK(add_disk(0, 1));
  store_.drop_open();
  store_.finish();
  EXPECT_THAT(sink_.epochs, ElementsAre(1));
  EXPECT_EQ(store_.staged_bytes(), 0u);
}

TEST_F(StoreDisks, CountsThatDifferRefuseTheWholeEpoch) {
  ASSERT_OK(commit());
  add_device();
  ASSERT_OK(add_disk(0, 1));
  raw_bytes_ += 1;
  EXPECT_EQ(commit().code(), Code::corrupt);
  EXPECT_THAT(sink_.epochs, ElementsAre(1));
}

TEST_F(StoreDisks, AnEpochIsBounded) {
  ASSERT_OK(commit());
  add_device();
  Status status;
  ckpt::DiskBody body;
  for (uint32_t i = 0; status.ok() && i < 1000; ++i) {
    Bytes noise(4096);
    for (size_t at = 0; at < noise.size(); ++at) noise[at] = static_cast<std::byte>(at * at * (i + 1) >> 3);
    ASSERT_TRUE(body.add({0, 0, 4096, ckpt::DiskEncoding::raw, noise}));
    Bytes out;
    body.take(&out);
    status = add(FrameType::disk, out);
  }
  EXPECT_EQ(status.code(), Code::exhausted);
  EXPECT_LE(store_.staged_bytes(), 2 * store_.limit_bytes());
}

TEST_F(StoreDisks, WhatDoesNotFitTheDisksIsRefused) {
  ASSERT_OK(commit());
  add_device();
  EXPECT_THAT(add_disk(kDisk - 1, 1).message(), HasSubstr("outside its disk"));
}

TEST(StoreWithoutDisks, RefusesEveryDisk) {
  Bytes memory(4 * kPageSize);
  Store store(memory, 64u << 10);
  ckpt::FrameView view;
  const Bytes body = disk_body(0, 1);
  view.header.type = static_cast<uint16_t>(FrameType::disk);
  view.header.epoch = 1;
  view.body = body;
  EXPECT_THAT(store.add(view).message(), HasSubstr("does not have"));
}

}  // namespace
}  // namespace remusd::backup
