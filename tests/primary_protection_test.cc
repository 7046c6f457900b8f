// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The whole primary (threads, link, staging, capture) with a simulated guest against a scripted backup over
// TCP and a real gate, whose outside the test listens to.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "guest/sim/protocol.h"
#include "primary/protection.h"
#include "tests/patience.h"
#include "tests/primary_fake_arbiter.h"
#include "tests/primary_fake_backup.h"
#include "tests/primary_hooked_guest.h"

namespace remusd::primary {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ProtectionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/remusd-primary-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    directory_ = path;

    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = std::max<uint64_t>(memory_mib_, 4);
    if (memory_mib_ > 0) definition_.sim.dirty_pages_per_ms = 200;
    definition_.nics.resize(1);
    ASSERT_TRUE(guest::complete_and_validate(&definition_).ok());
    guest::DriverOptions driver;
    driver.runtime_dir = directory_;
    auto guest = guest::start(definition_, driver);
    ASSERT_TRUE(guest.ok()) << guest.status().message();
    guest_ = std::make_unique<HookedGuest>(*std::move(guest));

    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    outside_.reset(pair[0]);
    std::vector<netbuf::Nic> nics(1);
    nics[0].id = guest_->nics()[0].id;
    nics[0].mac = guest_->nics()[0].mac;
    nics[0].socket_path = guest_->nics()[0].socket_path;
    nics[0].outside.reset(pair[1]);
    auto net = netbuf::NetBuffer::start(std::move(nics), {}, "vm1", false);
    ASSERT_TRUE(net.ok()) << net.status().message();
    net_ = *std::move(net);

    options_.node = "a";
    options_.peer = "b";
    options_.pace.interval = milliseconds(10);
    // Wide, so that a busy machine is no loss; the tests of silence narrow it.
    options_.heartbeat_lost = 500;
    options_.staging_bytes = 4u << 20;
    options_.sync_threshold_pages = 64;
  }
  void TearDown() override {
    protection_.reset();
    net_.reset();
    guest_.reset();
    backup_.reset();
    std::filesystem::remove_all(directory_);
  }

  void backup(Script script = {}) {
    backup_ = std::make_unique<FakeBackup>(std::move(script), guest::sim::config_of(definition_).digest(),
                                           guest_->memory().size());
    options_.peer_address = backup_->address();
  }
  Status protect() {
    Callbacks callbacks;
    callbacks.on_epoch = [this](const EpochSample& sample) {
      const std::lock_guard lock(mutex_);
      samples_.push_back(sample);
    };
    callbacks.on_state = [this](const Snapshot& snapshot) {
      const std::lock_guard lock(mutex_);
      states_.push_back(snapshot.state);
    };
    guest::Definition sent = definition_;
    sent.kernel = kernel_;
    auto protection = Protection::start(*guest_, sent, *net_, arbiter_, options_, std::move(callbacks));
    if (!protection.ok()) return protection.status();
    protection_ = *std::move(protection);
    return {};
  }
  bool reaches(State state) {
    return eventually([&] { return protection_->snapshot().state == state; });
  }
  bool acks(uint64_t epoch) {
    return eventually([&] { return protection_->snapshot().acked >= epoch; });
  }
  /// The newest counter that the outside has seen since the last call; 0: nothing came.
  uint64_t heard_outside() {
    uint64_t newest = 0;
    std::array<std::byte, 2048> frame;
    while (true) {
      const ssize_t got = ::recv(outside_.get(), frame.data(), frame.size(), MSG_DONTWAIT);
      if (got <= 0) return newest;
      const auto message = guest::sim::parse_frame({frame.data(), static_cast<size_t>(got)});
      if (message) newest = std::max(newest, message->counter);
    }
  }
  /// Takes what was let out before and says whether anything else comes. A frame to the guest shows that the
  /// net thread has turned since.
  bool speaks_now() {
    const auto taken = [this] {
      const netbuf::NetStats stats = net_->stats();
      return stats.inbound_frames + stats.inbound_dropped;
    };
    const uint64_t before = taken();
    EXPECT_TRUE(net_->inject(0, std::vector<std::byte>(60)));
    EXPECT_TRUE(eventually([&] { return taken() > before; }));
    (void)heard_outside();
    return eventually([&] { return heard_outside() != 0; }, milliseconds(200));
  }
  bool speaks() {
    (void)heard_outside();
    return eventually([&] { return heard_outside() != 0; });
  }
  std::vector<State> states() {
    const std::lock_guard lock(mutex_);
    return states_;
  }

  std::string directory_, kernel_;
  uint64_t memory_mib_ = 0;
  guest::Definition definition_;
  std::unique_ptr<HookedGuest> guest_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  ScopedFd outside_;
  FakeArbiter arbiter_;
  Options options_;
  std::unique_ptr<FakeBackup> backup_;
  std::mutex mutex_;
  std::vector<EpochSample> samples_;
  std::vector<State> states_;
  std::unique_ptr<Protection> protection_;
};

TEST_F(ProtectionTest, SyncsThenCommitsEpochsWhoseImageIsTheGuestsMemory) {
  kernel_ = directory_ + "/kernel";
  const std::string content(3'000'000, 'k');
  std::ofstream(kernel_) << content;
  options_.record_path = directory_ + "/stream";
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(20)) << protection_->snapshot().end.message();
  EXPECT_TRUE(speaks());
  protection_->unprotect("enough");
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_TRUE(protection_->snapshot().end.ok());
  EXPECT_TRUE(speaks());
  ASSERT_TRUE(eventually([&] { return backup_->seen().ended; }));

  const FakeBackup::Seen seen = backup_->seen();
  EXPECT_TRUE(seen.problem.ok()) << seen.problem.message();
  EXPECT_EQ(seen.goodbye, "enough");
  EXPECT_GT(seen.heartbeats, 0u);
  EXPECT_FALSE(seen.facts.empty());
  EXPECT_EQ(seen.base, *guest_->base_stream());
  ASSERT_EQ(seen.files.size(), 1u);
  EXPECT_EQ(seen.files.begin()->second.size(), content.size());
  EXPECT_EQ(arbiter_.record()->generation, 2u) << "one for the session, one to leave it";
  EXPECT_EQ(states(),
            (std::vector<State>{State::syncing, State::protecting, State::deciding, State::unprotected}));

  const Snapshot snapshot = protection_->snapshot();
  EXPECT_EQ(snapshot.tracker, "sim");
  EXPECT_GE(snapshot.sync_sent_pages, 1u);
  EXPECT_EQ(snapshot.generation, 1u);
  EXPECT_GT(snapshot.last_rtt_seconds, 0);
  const std::lock_guard lock(mutex_);
  ASSERT_GE(samples_.size(), 20u);
  for (size_t i = 0; i < samples_.size(); ++i) {
    const EpochSample& sample = samples_[i];
    EXPECT_EQ(sample.epoch, i + 1);
    EXPECT_GE(sample.pause, sample.stop + sample.scan + sample.copy + sample.resume);
    EXPECT_GE(sample.commit, sample.pause);
    EXPECT_GT(sample.sent_bytes, (sample.dirty_pages - sample.same_pages) * 16);
    EXPECT_EQ(sample.device_bytes, 4096u);
  }
  EXPECT_GT(std::filesystem::file_size(options_.record_path), content.size());
}

TEST_F(ProtectionTest, HoldsOutputUntilItsEpochIsAcknowledged) {
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(2));
  backup_->withhold = true;
  // What was acknowledged before may still be on its way: wait until sealing stops at the bound.
  ASSERT_TRUE(eventually([&] {
    const Snapshot snapshot = protection_->snapshot();
    return snapshot.sent == snapshot.acked + 4 && backup_->committed() == snapshot.sent;
  }));
  ASSERT_TRUE(eventually([&] { return net_->stats().held_frames > 0; }));
  const uint64_t acked = protection_->snapshot().acked;
  ASSERT_FALSE(speaks_now()) << "spoke before the ack";
  EXPECT_EQ(protection_->snapshot().acked, acked);
  EXPECT_EQ(backup_->committed(), acked + 4) << "no more epochs in flight than the bound";
  backup_->withhold = false;
  EXPECT_TRUE(speaks());
}

TEST_F(ProtectionTest, TheHypervisorGetsReadyForAPauseOnceWhetherOrNotTheLastEpochIsAcknowledged) {
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(2));
  EXPECT_TRUE(eventually([&] { return guest_->prepared >= 10; }));
  // Without acknowledgements it does so in time for the pause, if the thread is not late itself, and there
  // are no more epochs than may be in flight. One acknowledgement may still have been on its way.
  EXPECT_TRUE(eventually([&] {
    backup_->withhold = true;
    const int before = guest_->prepared;
    EXPECT_TRUE(eventually([&] {
      const Snapshot snapshot = protection_->snapshot();
      return snapshot.sent == snapshot.acked + 4;
    }));
    backup_->withhold = false;
    return guest_->prepared >= before + 2;
  }));
  EXPECT_EQ(guest_->prepared_twice, 0);
}

TEST_F(ProtectionTest, ALostAndARepeatedAckAreHarmless) {
  Script script;
  script.lose_ack_of = 3;
  script.twice_ack_of = 5;
  backup(script);
  ASSERT_TRUE(protect().ok());
  EXPECT_TRUE(acks(10));
  EXPECT_EQ(protection_->snapshot().state, State::protecting);
}

TEST_F(ProtectionTest, AnAckWithAWrongDigestEndsTheSession) {
  Script script;
  script.wrong_digest_at = 4;
  backup(script);
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  const Snapshot snapshot = protection_->snapshot();
  EXPECT_EQ(snapshot.end.code(), Code::corrupt);
  EXPECT_EQ(snapshot.released, 3u);
  EXPECT_TRUE(speaks());
}

TEST_F(ProtectionTest, ARefusalIsToldWithItsReasonAndTheGuestGoesOn) {
  for (const bool at_hello : {true, false}) {
    Script script;
    (at_hello ? script.refuse_hello : script.refuse_facts) =
        "cpu feature avx2: primary has it, backup does not";
    backup(script);
    ASSERT_TRUE(protect().ok());
    ASSERT_TRUE(reaches(State::unprotected));
    const Status end = protection_->snapshot().end;
    EXPECT_EQ(end.code(), at_hello ? Code::exists : Code::unsafe);
    EXPECT_NE(end.message().find("cpu feature avx2: primary has it"), std::string::npos) << end.message();
    EXPECT_TRUE(speaks());
    protection_.reset();
  }
  EXPECT_EQ(arbiter_.requests(), 2) << "one for each session, none to leave it";
}

TEST_F(ProtectionTest, APeerOfAnotherNameIsRefused) {
  Script script;
  script.node = "c";
  backup(script);
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_EQ(protection_->snapshot().end.code(), Code::unsafe);
}

TEST_F(ProtectionTest, AnUnreachablePeerIsToldAndTheGuestGoesOn) {
  options_.peer_address = "unix:" + directory_ + "/nobody";
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_NE(protection_->snapshot().end.message().find("connect to backup b"), std::string::npos);
  EXPECT_TRUE(speaks());
}

TEST_F(ProtectionTest, APeerThatDiesBeforeTheFirstCommitCostsNoQuestion) {
  Script script;
  script.die_after_ready = true;
  options_.sync_threshold_pages = 0;  // Keeps the first sync going for its rounds.
  backup(script);
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  // The COMMIT may have been queued just before the connection broke, and only then the arbiter is asked.
  EXPECT_EQ(arbiter_.requests(), protection_->snapshot().sent == 0 ? 1 : 2);
  EXPECT_TRUE(speaks());
}

TEST_F(ProtectionTest, APeerThatDiesAfterACommitLeavesUsUnprotectedOnceTheRightIsWon) {
  for (const uint64_t epoch : {uint64_t{1}, uint64_t{7}}) {
    Script script;
    script.die_at_commit = epoch;
    backup(script);
    ASSERT_TRUE(protect().ok());
    ASSERT_TRUE(reaches(State::unprotected));
    // The acknowledgement before may have died with the backup.
    EXPECT_LT(protection_->snapshot().acked, epoch);
    EXPECT_TRUE(speaks());
    EXPECT_EQ(arbiter_.record()->owner, "a");
    protection_.reset();
  }
}

TEST_F(ProtectionTest, APeerThatFallsSilentIsLost) {
  Script script;
  script.silent_at_commit = 5;
  options_.heartbeat_lost = 10;
  backup(script);
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  const Status end = protection_->snapshot().end;
  EXPECT_NE(end.message().find("no sign of life"), std::string::npos) << end.message();
}

TEST_F(ProtectionTest, TheLoserIsFencedAndNeverHeardAgain) {
  Script script;
  script.silent_at_commit = 6;
  options_.heartbeat_lost = 10;
  backup(script);
  arbiter_.let_win_after_next("b");
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(reaches(State::fenced));
  EXPECT_EQ(protection_->snapshot().released, 5u);
  EXPECT_FALSE(speaks_now());
  EXPECT_FALSE(guest_->pause().ok()) << "its guest is destroyed";
  EXPECT_NE(protection_->snapshot().end.message().find("node b won generation 2"), std::string::npos);
}

TEST_F(ProtectionTest, AnUnknownAnswerFreezesUntilTheArbiterIsBack) {
  for (const bool ours : {true, false}) {
    Script script;
    script.die_at_commit = 4;
    options_.arbiter_timeout = milliseconds(100);
    backup(script);
    arbiter_.down_after_next();
    ASSERT_TRUE(protect().ok());
    ASSERT_TRUE(reaches(State::frozen));
    EXPECT_FALSE(speaks_now()) << "spoke while frozen";
    EXPECT_EQ(protection_->snapshot().note, "arbiter down");
    if (!ours) arbiter_.let_win("b");
    arbiter_.set_down(false);
    ASSERT_TRUE(reaches(ours ? State::unprotected : State::fenced));
    EXPECT_TRUE(!ours || speaks());
    protection_.reset();
  }
}

TEST_F(ProtectionTest, AnOrderedFailoverEndsFencedWhenTheBackupHasTakenOver) {
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(5));
  protection_->order_failover();
  ASSERT_TRUE(eventually([&] { return backup_->seen().order; }));
  arbiter_.let_win("b");
  ASSERT_TRUE(reaches(State::fenced));
  EXPECT_TRUE(protection_->snapshot().end.ok());
  EXPECT_EQ(protection_->snapshot().sent, protection_->snapshot().sealed);
}

TEST_F(ProtectionTest, AGuestThatPowersOffEndsProtectionInOrder) {
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(3));
  ASSERT_TRUE(guest_->power_button().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_NE(protection_->snapshot().end.message().find("powered off"), std::string::npos);
  ASSERT_TRUE(eventually([&] { return backup_->seen().ended; }));
  EXPECT_NE(backup_->seen().goodbye.find("powered off"), std::string::npos);
}

TEST_F(ProtectionTest, ADriverThatFailsEndsProtectionWithItsReason) {
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(3));
  ASSERT_TRUE(guest_->destroy().ok());
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_NE(protection_->snapshot().end.message().find("destroyed"), std::string::npos);
}

TEST_F(ProtectionTest, AGuestThatExitsFailsTheProtectionAndTheBackupIsToldToTakeOver) {
  backup();
  ASSERT_TRUE(protect().ok() && acks(3));
  guest_->happens(guest::EventKind::exited);
  ASSERT_TRUE(eventually([&] { return backup_->seen().order; }));
  backup_.reset();  // It has taken over and closed the connection.
  ASSERT_TRUE(reaches(State::failed));
  EXPECT_NE(protection_->snapshot().end.message().find("the guest exited"), std::string::npos);
  EXPECT_EQ(arbiter_.record()->generation, 1u) << "the right to run is left to the backup";
}

TEST_F(ProtectionTest, ASlowBackupIsLeftInOrderWhereThatIsThePolicy) {
  options_.slow = {true, std::chrono::milliseconds(200), std::chrono::milliseconds(50)};
  backup();
  ASSERT_TRUE(protect().ok() && acks(3));
  backup_->withhold = true;
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_EQ(protection_->snapshot().end.code(), Code::timed_out);
}

TEST_F(ProtectionTest, AGuestThatRebootsSendsItsBaseStreamAgain) {
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(3));
  EXPECT_EQ(guest_->bases, 1);
  EXPECT_EQ(backup_->seen().bases, 1);
  guest_->happens(guest::EventKind::rebooted);
  ASSERT_TRUE(eventually([&] { return backup_->seen().bases == 2; }));
  ASSERT_TRUE(acks(protection_->snapshot().acked + 3));
  EXPECT_EQ(guest_->bases, 2);
}

TEST_F(ProtectionTest, AHypervisorThatStallsEndsProtectionWithItsReason) {
  for (const bool paused : {false, true}) {
    backup();
    ASSERT_TRUE(protect().ok());
    ASSERT_TRUE(acks(3));
    (paused ? guest_->save_stalls : guest_->pause_stalls) = true;
    ASSERT_TRUE(reaches(State::unprotected));
    const Status end = protection_->snapshot().end;
    EXPECT_EQ(end.code(), Code::timed_out);
    EXPECT_NE(end.message().find("no answer within"), std::string::npos);
    guest_->pause_stalls = guest_->save_stalls = false;
    (void)guest_->resume();
    protection_.reset();
  }
}

TEST_F(ProtectionTest, AGuestThatDirtiesMoreThanStagingHoldsIsStretchedAndStillProtected) {
  TearDown();
  definition_ = {};
  memory_mib_ = 32;
  SetUp();
  options_.pace.interval = milliseconds(25);
  options_.staging_bytes = 2u << 20;  // two chunks: 512 pages, and some thousand are dirtied in an epoch
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(10)) << protection_->snapshot().end.message();
  const auto reasons = protection_->snapshot().epochs_by_reason;
  EXPECT_GT(
      reasons[static_cast<size_t>(EpochReason::late)] + reasons[static_cast<size_t>(EpochReason::staging)],
      0u);
  EXPECT_TRUE(backup_->seen().problem.ok()) << backup_->seen().problem.message();
  protection_->unprotect("enough");
  ASSERT_TRUE(reaches(State::unprotected));
  EXPECT_EQ(guest_->pauses, guest_->resumes) << "the guest runs on";
}

TEST_F(ProtectionTest, ItCanBeProtectedAgain) {
  for (int round = 1; round <= 3; ++round) {
    backup();
    ASSERT_TRUE(protect().ok());
    ASSERT_TRUE(acks(5));
    protection_.reset();  // Ends as by unprotect().
    EXPECT_EQ(arbiter_.record()->generation, static_cast<uint64_t>(2 * round));
    EXPECT_TRUE(speaks());
  }
}

TEST_F(ProtectionTest, OnceJoinedItTouchesNeitherGuestNorGate) {
  backup();
  ASSERT_TRUE(protect().ok() && acks(2));
  protection_->unprotect("by test");
  ASSERT_TRUE(reaches(State::unprotected));
  protection_->join(), net_.reset(), guest_.reset();  // Sanitizers tell whether anybody comes back to them.
}

TEST_F(ProtectionTest, ADestructorWithTheArbiterDownDoesNotHangAndLetsNothingOut) {
  options_.arbiter_timeout = milliseconds(50);
  backup();
  ASSERT_TRUE(protect().ok());
  ASSERT_TRUE(acks(2));
  arbiter_.set_down(true);
  const Time began = Clock::now();
  protection_.reset();
  EXPECT_LT(Clock::now() - began, seconds(30));
  EXPECT_FALSE(speaks_now());
  EXPECT_TRUE(guest_->pause().ok()) << "the guest lives on";
}

TEST_F(ProtectionTest, AGuestThatAnotherNodeOwnsIsNotProtectedHere) {
  arbiter_.let_win("b");
  backup();
  const Status status = protect();
  EXPECT_EQ(status.code(), Code::unsafe);
  EXPECT_NE(status.message().find("node 'b' won generation"), std::string::npos) << status.message();
  EXPECT_EQ(arbiter_.record()->generation, 1u);
}

TEST_F(ProtectionTest, AnArbiterThatIsDownIsToldBeforeAnythingHappens) {
  arbiter_.set_down(true);
  backup();
  EXPECT_EQ(protect().code(), Code::unavailable);
  EXPECT_TRUE(speaks());
}

TEST_F(ProtectionTest, AMissingBootFileIsNamed) {
  kernel_ = directory_ + "/none";
  backup();
  const Status status = protect();
  EXPECT_EQ(status.code(), Code::not_found);
  EXPECT_NE(status.message().find(kernel_), std::string::npos);
  EXPECT_FALSE(arbiter_.record().has_value());
}

}  // namespace
}  // namespace remusd::primary
