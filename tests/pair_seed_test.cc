// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A pair whose backup begins with what an earlier session left: only what differs is sent, and the image is
// the guest's whatever was left. The replica refuses memory that is not that of its device state, so that a
// promotion proves the image.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <random>

#include "backup/session.h"
#include "guest/sim/memory.h"
#include "primary/protection.h"
#include "tests/loopback.h"
#include "tests/patience.h"

namespace remusd {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kGuestPages = 1024;  // what the simulated machine writes when it boots

class PairSeed : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/remusd-seed-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    std::filesystem::create_directories(directory_ + "/arbiter");
    arbiter_ = *arbiter::open_file_arbiter(directory_ + "/arbiter");
    definition_.name = "seed" + std::to_string(::getpid());
    definition_.driver = "sim";
    definition_.memory_mib = 8;
    options_.node = "a";
    options_.peer = "b";
    options_.pace.interval = milliseconds(5);
    options_.heartbeat_lost = 100;  // the machine may be busy with other tests
    options_.record_path = directory_ + "/stream";
  }
  void TearDown() override {
    end();
    std::filesystem::remove_all(directory_);
  }
  void end() {
    protection_.reset();
    session_.reset();
    net_.reset();
    if (guest_) (void)guest_->destroy();
    guest_.reset();
    if (promoted_.guest) (void)promoted_.guest->destroy();
    promoted_ = {};
  }
  void start_guest(uint32_t dirty_pages_per_ms) {
    definition_.sim.dirty_pages_per_ms = dirty_pages_per_ms;
    ASSERT_TRUE(guest::complete_and_validate(&definition_).ok());
    driver_.runtime_dir = directory_;
    guest_ = *guest::start(definition_, driver_);
    net_ = *netbuf::NetBuffer::start({}, {}, definition_.name, /*holding=*/false);
  }

  void protect() {
    protection_.reset();
    session_.reset();
    const Listener listener;
    options_.peer_address = listener.address;
    auto protection = primary::Protection::start(*guest_, definition_, *net_, *arbiter_, options_, {});
    ASSERT_TRUE(protection.ok()) << protection.status().message();
    protection_ = *std::move(protection);

    pollfd waiting{listener.socket.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&waiting, 1, 10000), 1);
    ScopedFd accepted = listener.accept();
    cable_.reset(::fcntl(accepted.get(), F_DUPFD_CLOEXEC, 0));
    backup::Options theirs;
    theirs.node = "b";
    theirs.heartbeat_lost = 100;
    theirs.driver = driver_;
    theirs.files_dir = directory_ + "/files";
    backup::Callbacks callbacks;
    callbacks.take_residue = [this](const std::string& vm) {
      EXPECT_EQ(vm, definition_.name);
      return std::move(residue_);
    };
    callbacks.leave_residue = [this](const std::string&, guest::Residue left) { residue_ = std::move(left); };
    callbacks.on_promoted = [this](backup::Promoted promoted) { promoted_ = std::move(promoted); };
    auto session = backup::Session::start(std::move(accepted), *arbiter_, theirs, std::move(callbacks));
    ASSERT_TRUE(session.ok()) << session.status().message();
    session_ = *std::move(session);
    ASSERT_TRUE(eventually([&] { return protection_->snapshot().state == primary::State::protecting; }))
        << protection_->snapshot().end.message() << " / " << session_->snapshot().end.message();
    synced_ = protection_->snapshot();
  }
  void run_epochs(uint64_t epochs) {
    const uint64_t until = protection_->snapshot().acked + epochs;
    ASSERT_TRUE(eventually([&] { return protection_->snapshot().acked >= until; }));
  }
  bool backup_becomes(backup::State state) {
    return eventually([&] { return session_->snapshot().state == state; });
  }
  void unprotect() {
    protection_->unprotect("enough");
    ASSERT_TRUE(backup_becomes(backup::State::ended)) << session_->snapshot().end.message();
    session_.reset();  // what it left is ours then
    protection_.reset();
  }
  void promote() {
    ASSERT_TRUE(session_->order_failover().ok());
    ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
    session_.reset();
  }
  void expect_valid_stream() {
    const std::string command = "/usr/bin/python3 " REMUSD_SOURCE_DIR "/tests/verify_stream.py --allow-cut " +
                                options_.record_path + " >/dev/null";
    const int status = std::system(command.c_str());
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the independent decoder complains";
  }
  /// An image that `change` makes page by page from the guest's.
  void leave(const std::function<void(uint64_t page, std::span<std::byte> content)>& change) {
    auto made = *guest::sim::SimMemory::create(guest_->memory().size());
    for (uint64_t page = 0; page < guest_->memory().size() / kPageSize; ++page) {
      const auto from = guest_->memory().subspan(page * kPageSize, kPageSize);
      const auto to = made.inside().subspan(page * kPageSize, kPageSize);
      if (page < kGuestPages) std::ranges::copy(from, to.begin());
      change(page, to);
    }
    residue_ = std::move(made).leave();
  }

  std::string directory_;
  guest::Definition definition_;
  guest::DriverOptions driver_;
  primary::Options options_;
  std::unique_ptr<arbiter::Arbiter> arbiter_;
  std::unique_ptr<guest::Guest> guest_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  guest::Residue residue_;  // on the backup's host; a session's thread has it while it lives
  ScopedFd cable_;
  backup::Promoted promoted_;
  std::unique_ptr<backup::Session> session_;
  std::unique_ptr<primary::Protection> protection_;
  primary::Snapshot synced_;
};

TEST_F(PairSeed, WhatASessionLeavesSparesTheNextOneAllThatIsStillTheSame) {
  ASSERT_NO_FATAL_FAILURE(start_guest(0));
  ASSERT_NO_FATAL_FAILURE(protect());
  EXPECT_EQ(synced_.resync_pages_total, 0u);
  EXPECT_GE(synced_.sync_sent_pages, kGuestPages);
  const uint64_t whole = synced_.resync_sent_bytes;
  ASSERT_NO_FATAL_FAILURE(unprotect());
  ASSERT_FALSE(residue_.empty());

  ASSERT_NO_FATAL_FAILURE(protect());
  EXPECT_GE(synced_.resync_pages_total, kGuestPages - 1);
  EXPECT_GE(synced_.resync_pages_matched, kGuestPages - 8) << "the first pages hold what it counts";
  EXPECT_LT(synced_.resync_sent_bytes, whole / 10);
  EXPECT_GE(synced_.sync_sent_pages, kGuestPages) << "progress goes on to the end";
  ASSERT_NO_FATAL_FAILURE(promote());
  protection_.reset();
  expect_valid_stream();
}

TEST_F(PairSeed, TheFirstSyncSendsNoMoreThanWhatDiffers) {
  ASSERT_NO_FATAL_FAILURE(start_guest(0));
  constexpr uint64_t kEvery = 5;
  uint64_t differing = 0, told = 0;
  leave([&](uint64_t page, std::span<std::byte> content) {
    const bool differs = page % kEvery == 1;
    told += page < kGuestPages || differs ? 1 : 0;
    if (!differs) return;
    ++differing;
    std::ranges::fill(content, std::byte{0x5a});  // beyond what the guest has: there it is to become zero
  });
  ASSERT_NO_FATAL_FAILURE(protect());
  EXPECT_EQ(synced_.resync_pages_total, told);
  EXPECT_LE(static_cast<double>(synced_.resync_sent_bytes), 1.2 * static_cast<double>(differing * kPageSize));
  EXPECT_GE(synced_.resync_pages_matched + differing + 8, synced_.resync_pages_total);
  ASSERT_NO_FATAL_FAILURE(promote());
  protection_.reset();
  expect_valid_stream();
}

TEST_F(PairSeed, TheImageIsTheGuestsWhateverWasLeftAndHoweverItIsWritten) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    end();
    definition_.name = "seed" + std::to_string(::getpid()) + "-" + std::to_string(seed);
    definition_.sim.seed = seed;
    options_.sync_threshold_pages = random() % 2 == 0 ? 1 : 2048;  // many passes or few
    options_.shadow_bytes = random() % 3 == 0 ? 64 * kPageSize : 128u << 20;
    ASSERT_NO_FATAL_FAILURE(start_guest(static_cast<uint32_t>(random() % 64)));
    const auto same = random() % 100;
    leave([&](uint64_t, std::span<std::byte> content) {
      if (random() % 100 < same) return;
      const auto kind = random() % 4;
      if (kind == 0) std::ranges::fill(content, std::byte{0});
      if (kind == 1) std::ranges::fill(content, static_cast<std::byte>(random()));
      if (kind == 2) content[random() % kPageSize] ^= std::byte{1};
      if (kind == 3) std::ranges::generate(content, [&] { return static_cast<std::byte>(random()); });
    });
    ASSERT_NO_FATAL_FAILURE(protect());
    ASSERT_NO_FATAL_FAILURE(run_epochs(random() % 8));
    ASSERT_NO_FATAL_FAILURE(promote());
    protection_.reset();  // nothing is recorded any more
    expect_valid_stream();
  }
}

TEST_F(PairSeed, ABrokenLinkDoesNotStartOver) {
  ASSERT_NO_FATAL_FAILURE(start_guest(0));
  leave([](uint64_t, std::span<std::byte>) {});
  for (int i = 0; i < 2; ++i) {
    ASSERT_NO_FATAL_FAILURE(protect());
    EXPECT_GE(synced_.resync_pages_matched, kGuestPages - 8) << i;
    ::shutdown(cable_.get(), SHUT_RDWR);
    ASSERT_TRUE(eventually([&] {
      const auto state = protection_->snapshot().state;
      return state == primary::State::unprotected || state == primary::State::fenced;
    }));
    if (protection_->snapshot().state == primary::State::fenced) {
      ASSERT_TRUE(backup_becomes(backup::State::promoted));  // it was the faster one: that is another test
      return;
    }
    ASSERT_TRUE(backup_becomes(backup::State::ended));
    session_.reset();
    protection_.reset();
    ASSERT_FALSE(residue_.empty());
  }
}

TEST_F(PairSeed, AnOlderPeerIsSentEverything) {
  ASSERT_NO_FATAL_FAILURE(start_guest(8));
  leave([](uint64_t, std::span<std::byte> content) { std::ranges::fill(content, std::byte{1}); });
  options_.seed = false;
  ASSERT_NO_FATAL_FAILURE(protect());
  EXPECT_FALSE(residue_.empty()) << "it was not touched";
  EXPECT_EQ(synced_.resync_pages_total, 0u);
  EXPECT_GE(synced_.sync_sent_pages, kGuestPages);
  ASSERT_NO_FATAL_FAILURE(run_epochs(3));
  ASSERT_NO_FATAL_FAILURE(promote());
}

}  // namespace
}  // namespace remusd
