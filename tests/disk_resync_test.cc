// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Two hosts with a disk each, whose guest changes hands and whose daemons die: after every first sync both
// disks are equal, and where a sync point is in common little more was sent than what differed.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "disk/copier.h"
#include "disk/disks.h"
#include "disk/verifier.h"
#include "tests/assert_ok.h"
#include "tests/patience.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

namespace fs = std::filesystem;
using ckpt::Bytes;

constexpr uint64_t kSyncedDisk = 12u << 20;
constexpr uint64_t kBlock = ckpt::kDiskBlockBytes;

class SyncedHost {
 public:
  SyncedHost(const std::string& folder, const std::string& name)
      : disk_(folder + "/" + name + ".raw"), files_{{"disk0", disk_, folder + "/" + name, 0, false}} {
    options_ = {8u << 20, folder + "/" + name + ".journal", folder + "/" + name + ".map"};
    std::ofstream(disk_).close();
    fs::resize_file(disk_, kSyncedDisk);
  }

  void open() {
    auto opened = Disks::open(files_, options_);
    ASSERT_OK(opened);
    disks = *std::move(opened);
  }
  void open_replica(const ckpt::SessionId& session) {
    ReplicaOptions replica;
    replica.session = session;
    replica.generation = 1;
    auto opened = Disks::open_replica(files_, options_, replica, [] {});
    ASSERT_OK(opened);
    disks = *std::move(opened);
  }
  void close() { disks.reset(); }
  /// The daemon dies: what it would have said at its end is not there.
  void die() {
    const std::string kept = options_.map_path + ".kept";
    fs::copy_file(options_.map_path, kept, fs::copy_options::overwrite_existing);
    disks.reset();
    fs::rename(kept, options_.map_path);
  }
  /// As the server does it. `error`: the disk refuses it.
  void write(uint64_t offset, uint64_t bytes, uint32_t seed, int error = 0) {
    std::mt19937 random(seed);
    Bytes data(bytes);
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    const Change change{0, ChangeKind::write, offset, bytes, ++sequence_};
    const Time deadline = Clock::now() + kPatience;
    while (!disks->tap().changing(change, data)) {
      ASSERT_LT(Clock::now(), deadline) << "its region is not stored";
      std::this_thread::yield();
    }
    if (error == 0) ASSERT_OK(disks->files()[0].write(offset, data));
    disks->tap().changed(change, error);
  }
  Bytes content() const {
    std::ifstream file(disk_, std::ios::binary);
    Bytes bytes(kSyncedDisk);
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return bytes;
  }
  const std::string& map_path() const { return options_.map_path; }
  const std::string& disk_path() const { return disk_; }

  std::unique_ptr<Disks> disks;

 private:
  const std::string disk_;
  const std::vector<DiskFile> files_;
  DisksOptions options_;
  uint64_t sequence_ = 0;
};

uint64_t bytes_that_differ(const Bytes& a, const Bytes& b) {
  uint64_t bytes = 0;
  for (uint64_t at = 0; at < a.size(); at += kBlock)
    if (std::memcmp(a.data() + at, b.data() + at, kBlock) != 0) bytes += kBlock;
  return bytes;
}

class DiskResync : public testing::Test {
 protected:
  /// Up to epoch 1, durable on both. A body in `cut_after` is the last that the backup hears of.
  void sync(SyncedHost* primary, SyncedHost* backup, uint64_t cut_after = UINT64_MAX) {
    session_[0] = static_cast<uint8_t>(++sessions_);
    backup->open_replica(session_);
    Disks& here = *primary->disks;
    Disks& there = *backup->disks;
    here.begin_session(session_);
    Inquiry inquiry([] {});
    Copier copier(here.files(), here.tap(), 0, [] {}, {&inquiry, here.map()});
    auto done = std::async(std::launch::async, [&] {
      const Status status = copier.settle();
      return status.ok() ? copier.finish() : status;
    });
    uint64_t bodies = 0;
    const Time deadline = Clock::now() + kPatience;
    for (bool more = true, over = false; more || !over;) {
      over = done.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
      more = false;
      Bytes body;
      if (inquiry.next(&body)) {
        ckpt::DiskAsk ask;
        ASSERT_OK(ckpt::decode(body, &ask));
        ASSERT_OK(there.ask(ask));
        more = true;
      }
      for (body.clear(); there.told(&body); body.clear()) ASSERT_OK(inquiry.told(body));
      uint64_t raw_bytes = 0;
      if (copier.next(&body, &raw_bytes)) {
        if (++bodies > cut_after) copier.stop();
        if (bodies <= cut_after) ASSERT_OK(there.replica()->sync(std::move(body)));
        more = true;
      }
      ASSERT_LT(Clock::now(), deadline);
    }
    progress_ = copier.progress();
    // It may have ended well just before it was stopped.
    if (!done.get().ok() || bodies > cut_after) return give_up(primary);
    epoch_ = 0;
    commit(primary, backup);
    const auto begun = [&](const SyncedHost& host) { return host.disks->map()->point() == session_; };
    while (!begun(*primary) || !begun(*backup)) {
      primary->disks->durable(there.replica()->durable_epoch());
      ASSERT_LT(Clock::now(), deadline);
      std::this_thread::yield();
    }
  }
  void commit(SyncedHost* primary, SyncedHost* backup) {
    primary->disks->tap().seal(++epoch_);
    std::vector<Bytes> bodies;
    Bytes body;
    uint64_t raw_bytes = 0;
    for (; primary->disks->tap().next(epoch_, &body, &raw_bytes); body.clear()) bodies.push_back(body);
    ASSERT_OK(backup->disks->replica()->commit(epoch_, std::move(bodies), 1));
    primary->disks->tap().acked(epoch_);
    primary->disks->durable(backup->disks->replica()->durable_epoch());
  }
  static void give_up(SyncedHost* primary) {
    primary->disks->end_session();
    primary->disks->tap().off();
  }
  void expect_equal(const SyncedHost& backup, const SyncedHost& primary) {
    EXPECT_EQ(bytes_that_differ(primary.content(), backup.content()), 0u);
  }

  TemporaryDirectory folder_;
  SyncedHost a_{folder_.path(), "a"}, b_{folder_.path(), "b"};
  ckpt::SessionId session_{};
  int sessions_ = 0;
  uint64_t epoch_ = 0;
  CopyProgress progress_;
};

TEST_F(DiskResync, AReturnedHostGetsWhatDiffersAndNoMore) {
  a_.open();
  a_.write(0, 6u << 20, 1);
  sync(&a_, &b_);
  EXPECT_FALSE(progress_.by_map);
  EXPECT_EQ(progress_.changed_bytes, 6u << 20) << "holes are holes on both";
  a_.write(1u << 20, 8 * kBlock, 2);
  commit(&a_, &b_);
  a_.write(2u << 20, 4 * kBlock, 3);  // never committed
  a_.die();
  ASSERT_OK(b_.disks->promote(Clock::now() + kPatience));
  b_.write((1u << 20) + kBlock, kBlock, 4);
  b_.write(3u << 20, 2 * kBlock, 5);
  b_.close();
  const uint64_t differs = bytes_that_differ(a_.content(), b_.content());
  EXPECT_EQ(differs, (1 + 4 + 2) * kBlock);
  b_.open();
  sync(&b_, &a_);
  EXPECT_TRUE(progress_.by_map);
  EXPECT_EQ(progress_.total_bytes, 3u << 20) << "what one of the maps has";
  EXPECT_EQ(progress_.changed_bytes, differs);
  ASSERT_OK(a_.disks->promote(Clock::now() + kPatience));
  expect_equal(a_, b_);
}

TEST_F(DiskResync, DisksThatSomebodyWroteToOrReplacedAreLookedAtWhole) {
  a_.open();
  a_.write(0, 1u << 20, 1);
  sync(&a_, &b_);
  give_up(&a_);
  b_.close();
  {
    std::fstream file(b_.disk_path(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(5 << 20);
    file << "somebody";
  }
  sync(&a_, &b_);
  EXPECT_FALSE(progress_.by_map);
  EXPECT_EQ(progress_.changed_bytes, kBlock);
  give_up(&a_);
  b_.close();
  fs::copy_file(b_.disk_path(), b_.disk_path() + ".copy");
  fs::rename(b_.disk_path() + ".copy", b_.disk_path());
  sync(&a_, &b_);
  EXPECT_FALSE(progress_.by_map);
  EXPECT_EQ(progress_.changed_bytes, 0u);
  b_.close();
  expect_equal(b_, a_);
}

TEST_F(DiskResync, ABrokenFirstSyncDoesNotStartOver) {
  a_.open();
  a_.write(0, 8u << 20, 1);
  sync(&a_, &b_, /*cut_after=*/4);
  const Time deadline = Clock::now() + kPatience;
  while (b_.disks->replica_stats().behind_bytes > 0) {
    ASSERT_LT(Clock::now(), deadline);
    std::this_thread::yield();
  }
  b_.close();
  const uint64_t differs = bytes_that_differ(a_.content(), b_.content());
  EXPECT_LT(differs, 8u << 20);
  EXPECT_GT(differs, 1u << 20);
  sync(&a_, &b_);
  EXPECT_EQ(progress_.changed_bytes, differs);
  b_.close();
  expect_equal(b_, a_);
}

TEST_F(DiskResync, AfterAChangeThatFailedHereEverythingIsLookedAt) {
  a_.open();
  a_.write(0, 1u << 20, 1);
  sync(&a_, &b_);
  a_.write(2u << 20, kBlock, 2, EIO);
  commit(&a_, &b_);
  const Time deadline = Clock::now() + kPatience;
  while (a_.disks->map()->point() != ckpt::SessionId{}) {
    ASSERT_LT(Clock::now(), deadline);
    std::this_thread::yield();
  }
  EXPECT_NE(a_.disks->map_failure().message().find("failed here"), std::string::npos);
  a_.die();
  ASSERT_OK(b_.disks->promote(Clock::now() + kPatience));
  EXPECT_EQ(bytes_that_differ(a_.content(), b_.content()), kBlock);
  b_.close();
  b_.open();
  sync(&b_, &a_);
  EXPECT_FALSE(progress_.by_map);
  EXPECT_EQ(progress_.changed_bytes, kBlock);
  ASSERT_OK(b_.disks->map_failure());
  ASSERT_OK(a_.disks->promote(Clock::now() + kPatience));
  expect_equal(a_, b_);
}

TEST_F(DiskResync, WhatDiffersIsFoundWhileTheGuestWrites) {
  a_.open();
  a_.write(0, 2u << 20, 1);
  sync(&a_, &b_);
  const auto verify = [&] {
    Inquiry inquiry([] {});
    Verifier verifier(a_.disks->files(), a_.disks->tap(), inquiry);
    const Time deadline = Clock::now() + kPatience;
    for (uint32_t turn = 0; !verifier.ended() && Clock::now() < deadline; ++turn) {
      a_.write((3u << 20) + turn % 16 * kBlock, kBlock, turn);
      commit(&a_, &b_);
      Bytes body;
      if (inquiry.next(&body)) {
        ckpt::DiskAsk ask;
        EXPECT_TRUE(ckpt::decode(body, &ask).ok());
        EXPECT_TRUE(b_.disks->ask(ask).ok());
      }
      for (body.clear(); b_.disks->told(&body); body.clear()) EXPECT_TRUE(inquiry.told(body).ok());
    }
    inquiry.stop();
    return verifier.progress();
  };
  VerifyProgress found = verify();
  EXPECT_EQ(found.state, VerifyProgress::State::equal) << found.failure.message();
  EXPECT_EQ(found.compared_bytes, kSyncedDisk);
  EXPECT_LE(found.busy_bytes, 16 * kBlock);
  {
    std::fstream file(b_.disk_path(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp((1 << 20) + 5);
    file << "somebody";
  }
  found = verify();
  EXPECT_EQ(found.state, VerifyProgress::State::different) << found.failure.message();
  EXPECT_EQ(found.different_bytes, kBlock);
  ASSERT_EQ(found.places.size(), 1u);
  EXPECT_EQ(found.places[0].offset, 1u << 20);
}

TEST_F(DiskResync, WhoeverDiesBothAreEqualAfterTheNextSync) {
  const char* all = std::getenv("REMUSD_RESYNC_SEEDS");
  const uint32_t seeds = all == nullptr ? 6 : static_cast<uint32_t>(std::atoi(all));
  int by_map = 0;
  uint64_t changed = 0, differed = 0;
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    SyncedHost* primary = &a_;
    SyncedHost* backup = &b_;
    primary->open();
    const auto guest_writes = [&](int times) {
      for (int i = 0; i < times; ++i) {
        const uint64_t blocks = 1 + random() % 8;
        primary->write(random() % (kSyncedDisk / kBlock - blocks) * kBlock, blocks * kBlock,
                       static_cast<uint32_t>(random()));
      }
    };
    for (int round = 0; round < 5; ++round) {
      guest_writes(static_cast<int>(random() % 4));
      const uint64_t before = bytes_that_differ(primary->content(), backup->content());
      const bool broken = random() % 5 == 0;
      sync(primary, backup, broken ? random() % 3 : UINT64_MAX);
      if (broken && primary->disks->map()->point() != session_) {
        random() % 2 == 0 ? backup->die() : backup->close();
        continue;
      }
      by_map += progress_.by_map ? 1 : 0;
      if (progress_.by_map) {
        changed += progress_.changed_bytes;
        differed += before;
      }
      for (int epoch = static_cast<int>(random() % 5); epoch > 0; --epoch) {
        guest_writes(static_cast<int>(random() % 3));
        commit(primary, backup);
      }
      guest_writes(static_cast<int>(random() % 3));  // not committed
      switch (random() % 3) {
        case 0:  // the backup is lost
          random() % 2 == 0 ? backup->die() : backup->close();
          give_up(primary);
          break;
        case 1:  // the primary's daemon goes, and comes back with the guest
          backup->close();
          random() % 2 == 0 ? primary->die() : primary->close();
          primary->open();
          break;
        default:  // the primary's host goes
          primary->die();
          ASSERT_OK(backup->disks->promote(Clock::now() + kPatience));
          std::swap(primary, backup);
      }
      if (HasFatalFailure()) return;
    }
    if (backup->disks == nullptr || backup->disks->replica() == nullptr) sync(primary, backup);
    ASSERT_OK(backup->disks->promote(Clock::now() + kPatience));
    EXPECT_EQ(bytes_that_differ(primary->content(), backup->content()), 0u);
    if (HasFailure()) return;
    primary->close();
    backup->close();
    std::swap(primary, backup);
  }
  EXPECT_GT(by_map, static_cast<int>(seeds));
  EXPECT_LE(changed, differed * 12 / 10);
}

}  // namespace
}  // namespace remusd::disk
