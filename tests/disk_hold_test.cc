// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Held disks, by what their guest sees and by what is on the shared file.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "disk/disks.h"
#include "tests/assert_ok.h"
#include "tests/disk_nbd_client.h"
#include "tests/patience.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

using nbd::Command;
using nbd::Error;

constexpr uint64_t kHeldLength = 4u << 20;
constexpr uint64_t kHeldLimit = 8u << 20;

Time in_time() {
  return Clock::now() + kPatience;
}

class HeldDisk : public testing::Test {
 protected:
  HeldDisk() {
    std::ofstream(at("disk")).close();
    std::filesystem::resize_file(at("disk"), kHeldLength);
  }
  std::string at(const std::string& name) const { return folder_.path() + "/" + name; }
  std::vector<DiskFile> one() const { return {{"disk0", at("disk"), at("socket"), 0, false, true}}; }
  DisksOptions options() const { return {limit_, "", "", at("held")}; }
  void open() {
    auto disks = Disks::open(one(), options());
    ASSERT_OK(disks);
    disks_ = *std::move(disks);
  }
  std::unique_ptr<NbdClient> connect(bool structured = false) {
    auto client = std::make_unique<NbdClient>(at("socket"));
    EXPECT_TRUE(client->enter("", structured));
    return client;
  }
  Tap& tap() { return disks_->tap(); }
  /// As the copier and the epoch thread do.
  void protect() {
    tap().mark([](const Change&) {});
    ASSERT_TRUE(eventually([&] { return *tap().may_log(); }));
    tap().log();
    tap().pausing();
    epoch_ = 0;
    seal();
    tap().resumed();
  }
  void seal() { tap().seal(++epoch_); }
  bool settle(uint64_t epoch) {
    tap().acked(epoch);
    return eventually([&] { return tap().settled_epoch() >= epoch; });
  }
  Bytes file() const {
    std::ifstream in(at("disk"), std::ios::binary);
    Bytes all(kHeldLength);
    in.read(reinterpret_cast<char*>(all.data()), static_cast<std::streamsize>(all.size()));
    return all;
  }
  std::byte on_disk(uint64_t offset) const { return file()[offset]; }
  bool marked() const { return std::filesystem::exists(at("held")); }

  TemporaryDirectory folder_;
  std::unique_ptr<Disks> disks_;
  uint64_t epoch_ = 0, limit_ = kHeldLimit;
};

TEST_F(HeldDisk, BeforeAndAfterProtectionItIsADiskAsAnyOther) {
  open();
  const auto client = connect();
  EXPECT_EQ(client->write_now(0, filled(4096, 1)), Error::none);
  EXPECT_EQ(on_disk(0), std::byte{1});
  EXPECT_FALSE(marked());
  protect();
  EXPECT_TRUE(marked());
  EXPECT_EQ(client->write_now(0, filled(4096, 2)), Error::none);
  EXPECT_EQ(on_disk(0), std::byte{1});
  tap().freeze();
  tap().won();
  tap().off();
  EXPECT_TRUE(tap().await_passing(in_time()));
  EXPECT_EQ(on_disk(0), std::byte{2}) << "it had not been acknowledged, but the right to run was won";
  EXPECT_FALSE(marked());
  EXPECT_EQ(client->write_now(0, filled(4096, 3)), Error::none);
  EXPECT_EQ(on_disk(0), std::byte{3});
  EXPECT_EQ(tap().stats().held_bytes, 0u);
}

TEST_F(HeldDisk, AWriteReachesTheFileOnlyOnceItsEpochIsAcknowledged) {
  open();
  const auto client = connect();
  protect();
  EXPECT_EQ(client->write_now(100, filled(5000, 1), nbd::kFua), Error::none);
  EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none) << "nobody outside can observe it";
  seal();  // 2
  EXPECT_EQ(client->write_now(200, filled(100, 2)), Error::none);
  seal();  // 3
  EXPECT_EQ(file(), Bytes(kHeldLength));
  EXPECT_TRUE(settle(2));
  EXPECT_EQ(on_disk(100), std::byte{1});
  EXPECT_EQ(on_disk(200), std::byte{1}) << "epoch 3 is not acknowledged";
  EXPECT_EQ(client->read_now(150, 100)[60], std::byte{2}) << "partly held";
  EXPECT_TRUE(settle(3));
  EXPECT_EQ(on_disk(200), std::byte{2});
  EXPECT_EQ(tap().stats().held_bytes, 0u);
}

TEST_F(HeldDisk, WhatWasFencedNeverReachesTheFile) {
  open();
  auto client = connect();
  protect();
  EXPECT_EQ(client->write_now(0, filled(4096, 1)), Error::none);
  seal();
  tap().freeze();
  tap().acked(epoch_);
  EXPECT_TRUE(eventually([&] { return tap().quiet(); }));
  EXPECT_EQ(client->write_now(8192, filled(4096, 2)), Error::none) << "the guest runs on meanwhile";
  EXPECT_EQ(client->read_now(8192, 4096), filled(4096, 2));
  tap().off();
  EXPECT_EQ(file(), Bytes(kHeldLength)) << "the right to run is being decided";
  tap().lost();
  client->write(7, 16384, filled(4096, 3));
  EXPECT_TRUE(eventually([&] { return disks_->counters(0).held == 1; })) << "it waits for ever";
  client.reset();
  disks_.reset();
  EXPECT_EQ(file(), Bytes(kHeldLength));
  EXPECT_TRUE(marked()) << "a guest that still ran would remember what is lost";
}

TEST_F(HeldDisk, WhileTheRightToRunIsDecidedTheBackupCanTakeTheLock) {
  open();
  const auto client = connect();
  protect();
  EXPECT_EQ(client->write_now(0, filled(4096, 1)), Error::none);
  auto theirs = LocalFile::open_unlocked(at("disk"));
  ASSERT_OK(theirs);
  EXPECT_EQ(theirs->lock().code(), Code::unsafe);
  tap().freeze();
  ASSERT_TRUE(eventually([&] { return tap().quiet(); }));
  ASSERT_OK(theirs->lock());
  tap().won();
  EXPECT_FALSE(tap().await_passing(Clock::now() + std::chrono::milliseconds(200)));
  EXPECT_EQ(file(), Bytes(kHeldLength)) << "somebody else has the lock";
  EXPECT_EQ(client->read_now(0, 4096), filled(4096, 1));
  theirs->unlock();
  EXPECT_TRUE(tap().await_passing(in_time()));
  EXPECT_EQ(on_disk(0), std::byte{1});
  EXPECT_EQ(theirs->lock().code(), Code::unsafe);
}

TEST_F(HeldDisk, AFlushBetweenTheFirstKeptWriteAndTheFirstPauseWaits) {
  open();
  const auto client = connect();
  tap().mark([](const Change&) {});
  ASSERT_TRUE(*tap().may_log());
  tap().log();
  EXPECT_EQ(client->write_now(0, filled(4096, 1)), Error::none);
  client->ask(Command::flush, 1, 0, 0);
  client->write(2, 4096, filled(4096, 2), nbd::kFua);
  client->ask(Command::read, 3, 0, 4096);
  EXPECT_EQ(client->answer().cookie, 3u) << "output is not held yet: nobody may hear that it is durable";
  tap().pausing();
  EXPECT_EQ(client->answer().error, Error::none);
  EXPECT_EQ(client->answer().error, Error::none);
  EXPECT_EQ(file(), Bytes(kHeldLength));
}

TEST_F(HeldDisk, AtTheBoundWritesWaitUntilAnEpochIsOnTheStorage) {
  open();
  const auto client = connect();
  protect();
  // Each covers the one before but for its first block: what is covered counts until its epoch is gone.
  for (uint64_t i = 0; i < 16 && disks_->counters(0).held == 0; ++i) {
    client->write(1000 + i, i * 4096, filled(1 << 20, 1));
    ASSERT_TRUE(eventually([&] {
      const DiskCounters now = disks_->counters(0);
      return now.writes == i + 1 && (now.held > 0 || tap().stats().written_bytes == (i + 1) << 20);
    }));
    if (disks_->counters(0).held == 0) {
      EXPECT_EQ(client->answer().error, Error::none);
    }
  }
  EXPECT_EQ(disks_->counters(0).held, 1u);
  EXPECT_LE(tap().stats().held_bytes, kHeldLimit);
  seal();
  EXPECT_TRUE(settle(epoch_));
  EXPECT_EQ(client->answer().error, Error::none);
}

TEST_F(HeldDisk, StatusTellsWhatIsKept) {
  open();
  const auto client = connect(true);
  EXPECT_EQ(client->write_now(1 << 20, filled(1 << 20, 1)), Error::none);
  protect();
  EXPECT_EQ(client->write_now(0, filled(65536, 1)), Error::none);
  EXPECT_EQ(client->ask_now(Command::trim, 1 << 20, 65536).error, Error::none);
  const auto status = [&](uint16_t flags) {
    const Bytes content = client->ask_now(Command::block_status, 0, kHeldLength, flags).content;
    std::vector<std::pair<uint32_t, uint32_t>> all;
    for (size_t i = 0; i + 8 <= content.size(); i += 8) {
      const auto extent = nbd::get<nbd::Extent>(std::span(content).subspan(i));
      all.emplace_back(extent.bytes, extent.state);
    }
    return all;
  };
  const uint32_t hole = nbd::kStateHole | nbd::kStateZero;
  using Extents = std::vector<std::pair<uint32_t, uint32_t>>;
  EXPECT_EQ(status(0), (Extents{{65536, 0}, {1 << 20, hole}, {(1 << 20) - 65536, 0}, {2u << 20, hole}}));
  EXPECT_EQ(status(nbd::kReqOne), (Extents{{65536, 0}}));
}

TEST_F(HeldDisk, AStandbyHasNoLockAndMakesNothing) {
  open();
  auto standby =
      Disks::open_replica({{"disk0", at("disk"), at("other"), kHeldLength, false, true}}, options(), {}, {});
  ASSERT_OK(standby);
  EXPECT_EQ((*standby)->replica(), nullptr);
  EXPECT_EQ((*standby)->lock_held(Clock::now()).code(), Code::unsafe);
  disks_.reset();
  ASSERT_OK((*standby)->lock_held(in_time()));
  EXPECT_EQ(Disks::open(one(), options()).status().code(), Code::unsafe);
  EXPECT_EQ(Disks::open_replica({{"disk0", at("none"), at("o"), kHeldLength, false, true}}, options(), {}, {})
                .status()
                .code(),
            Code::not_found)
      << "storage that is not there is not made";
}

/// What the disk must read as, and what the file must hold once everything is settled.
class HeldModel {
 public:
  explicit HeldModel(uint64_t bytes) : now_(bytes) {}
  void write(uint64_t offset, const Bytes& data) {
    std::copy(data.begin(), data.end(), now_.begin() + static_cast<ptrdiff_t>(offset));
  }
  const Bytes& now() const { return now_; }
  void seal(uint64_t epoch) { epochs_[epoch] = now_; }
  const Bytes& of(uint64_t epoch) const { return epochs_.at(epoch); }

 private:
  Bytes now_;
  std::map<uint64_t, Bytes> epochs_;
};

class RandomHeldDisk : public HeldDisk, public testing::WithParamInterface<uint32_t> {};

TEST_P(RandomHeldDisk, ReadsAsAPlainArrayAndTheFileIsExactlyTheSettledEpoch) {
  limit_ = 1u << 30;  // Each epoch counts a MiB at least, and here nobody acknowledges while one waits.
  open();
  std::mt19937 random(GetParam());
  const std::unique_ptr<NbdClient> clients[] = {connect(), connect()};
  HeldModel model(kHeldLength);
  bool on = false;
  uint64_t acked = 0;
  // Few places, so that runs overlap in every way.
  const auto place = [&] { return random() % 48 * 1000 + random() % 3 * 512; };
  const auto size = [&] { return 1 + random() % (random() % 4 == 0 ? 30000 : 3000); };
  for (int step = 0; step < 1500; ++step) {
    NbdClient& client = *clients[random() % 2];
    const uint64_t offset = place();
    const auto bytes = static_cast<uint32_t>(size());
    switch (random() % 12) {
      case 0:
      case 1:
      case 2:
      case 3: {
        const Bytes data = filled(bytes, static_cast<unsigned>(1 + random() % 255));
        ASSERT_EQ(client.write_now(offset, data, random() % 8 == 0 ? nbd::kFua : 0), Error::none);
        model.write(offset, data);
        break;
      }
      case 4:
        ASSERT_EQ(client.ask_now(Command::write_zeroes, offset, bytes, random() % 2 ? nbd::kNoHole : 0).error,
                  Error::none);
        model.write(offset, Bytes(bytes));
        break;
      case 5:
        ASSERT_EQ(client.ask_now(Command::trim, offset, bytes).error, Error::none);
        model.write(offset, Bytes(bytes));
        break;
      case 6:
      case 7: {
        const Bytes got = client.read_now(offset, bytes);
        ASSERT_TRUE(std::equal(got.begin(), got.end(), model.now().begin() + static_cast<ptrdiff_t>(offset)))
            << "step " << step;
        break;
      }
      case 8:
        if (on) {
          seal();
          model.seal(epoch_);
        }
        break;
      case 9:
        if (on && acked < epoch_) {
          const bool wait = random() % 2 == 0;
          acked += 1 + random() % (epoch_ - acked);
          tap().acked(acked);
          // Only epochs that changed something are told.
          if (wait && model.of(acked) != model.of(acked - 1)) {
            ASSERT_TRUE(eventually([&] { return tap().settled_epoch() >= acked; }));
            ASSERT_EQ(file(), model.of(acked)) << "step " << step;
          }
        }
        break;
      case 10:
        ASSERT_EQ(client.ask_now(Command::flush, 0, 0).error, Error::none);
        break;
      case 11:
        if (random() % 12 != 0) break;
        if (!on) {
          protect();
          model.seal(0);
          model.seal(1);
          acked = 1;
          tap().acked(1);
        } else {
          tap().freeze();
          tap().off();
          tap().won();
          ASSERT_TRUE(tap().await_passing(in_time()));
          ASSERT_EQ(file(), model.now());
        }
        on = !on;
        break;
    }
  }
  ASSERT_EQ(clients[0]->read_now(0, kHeldLength), model.now());
  if (on) {
    tap().freeze();
    tap().won();
    tap().off();
    ASSERT_TRUE(tap().await_passing(in_time()));
  }
  EXPECT_EQ(file(), model.now());
  EXPECT_EQ(tap().stats().held_bytes, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomHeldDisk, testing::Range(1u, 21u));

}  // namespace
}  // namespace remusd::disk
