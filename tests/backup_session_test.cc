// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// backup::Session against a scripted primary over TCP: FAULTS.md 1, 3, 4, 7, 9, 11, 12, 20, 32, 38, 39,
// 41, 43.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "backup/boot_files.h"
#include "backup/session.h"
#include "tests/backup_fake_primary.h"

namespace remusd::backup {
namespace {

using arbiter::Verdict;
using ckpt::FrameType;
using std::chrono::milliseconds;

class BackupSession : public testing::Test {
 protected:
  BackupSession() {
    char pattern[] = "/tmp/remusd-backup-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    options_.node = "b";
    // A machine that is busy with other things must not look like a dead primary where that is not the test.
    options_.heartbeat_lost = 100;
    options_.arbiter_timeout = milliseconds(30);
    options_.driver.runtime_dir = directory_;
    options_.files_dir = directory_ + "/files";
    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = 4;
    definition_.sim.seed = 11;
    EXPECT_TRUE(guest::complete_and_validate(&definition_).ok());
  }
  ~BackupSession() override {
    session_.reset();
    std::filesystem::remove_all(directory_);
  }

  void connect() {
    auto [ours, theirs] = tcp_pair();
    Callbacks callbacks;
    callbacks.admit = [this](const std::string& vm, const std::string& peer, uint64_t generation) {
      EXPECT_EQ(vm, "vm1");
      EXPECT_EQ(peer, "a");
      EXPECT_EQ(generation, kTestGeneration);
      return admission_;
    };
    callbacks.on_state = [this](const Snapshot& snapshot) {
      const std::lock_guard lock(mutex_);
      states_.push_back(snapshot.state);
      changed_.notify_all();
    };
    callbacks.on_promoted = [this](Promoted promoted) {
      EXPECT_TRUE(promoted.guest->pause().ok());
      const std::lock_guard lock(mutex_);
      promoted_ = std::move(promoted);
    };
    auto session = Session::start(std::move(theirs), arbiter_, options_, std::move(callbacks));
    ASSERT_TRUE(session.ok()) << session.status().message();
    session_ = *std::move(session);
    primary_.emplace(std::move(ours), definition_);
  }
  std::string facts() const {
    auto standby = guest::prepare(definition_, options_.driver);
    EXPECT_TRUE(standby.ok()) << standby.status().message();
    return guest::to_json((*standby)->facts());
  }
  void protect(uint64_t epochs) {
    connect();
    ASSERT_TRUE(primary_->shake_hands(facts())) << primary_->refuse.reason;
    for (uint64_t epoch = 0; epoch < epochs; ++epoch) ASSERT_TRUE(primary_->commit_epoch());
  }
  bool reaches(State state) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] {
      return std::find(states_.begin(), states_.end(), state) != states_.end();
    });
  }
  bool was(State state) {
    const std::lock_guard lock(mutex_);
    return std::find(states_.begin(), states_.end(), state) != states_.end();
  }

  /// The promoted guest has gone on from exactly the epoch that the primary remembers: the same machine, made
  /// from that epoch and run for as long, has the same memory to the last bit.
  void expect_goes_on_from_last_epoch() {
    ASSERT_TRUE(reaches(State::promoted)) << session_->snapshot().end.message();
    ASSERT_TRUE(promoted_.has_value());
    EXPECT_EQ(promoted_->generation, kTestGeneration + 1);
    ASSERT_NE(promoted_->net, nullptr);
    auto saved = promoted_->guest->save();
    ASSERT_TRUE(saved.ok());
    const guest::sim::SimConfig config = guest::sim::config_of(definition_);
    const auto now = guest::sim::load_device(*saved, config.digest(), 0);
    const auto then = guest::sim::load_device(primary_->device, config.digest(), 0);
    ASSERT_TRUE(now.ok() && then.ok());
    ASSERT_GE(now->steps, then->steps);

    auto memory = guest::sim::SimMemory::create(config.memory_bytes());
    ASSERT_TRUE(memory.ok());
    std::copy(primary_->image.begin(), primary_->image.end(), memory->outside().begin());
    auto replay =
        guest::sim::SimMachine::restore(config, *std::move(memory), primary_->base, primary_->device);
    ASSERT_TRUE(replay.ok()) << replay.status().message();
    replay->step(now->steps - then->steps);
    EXPECT_TRUE(std::ranges::equal(replay->memory(), promoted_->guest->memory()));
    EXPECT_GT(session_->snapshot().promote_seconds, 0);

    ASSERT_TRUE(promoted_->guest->resume().ok());
    const Time deadline = Clock::now() + std::chrono::seconds(5);
    uint64_t steps = now->steps;
    while (steps == now->steps && Clock::now() < deadline) {
      ASSERT_TRUE(promoted_->guest->pause().ok());
      steps = guest::sim::load_device(*promoted_->guest->save(), config.digest(), 0)->steps;
      ASSERT_TRUE(promoted_->guest->resume().ok());
    }
    EXPECT_GT(steps, now->steps) << "it runs on";
  }

  std::string directory_;
  Options options_;
  guest::Definition definition_;
  FakeArbiter arbiter_;
  Status admission_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<State> states_;
  std::optional<Promoted> promoted_;
  std::optional<FakePrimary> primary_;
  std::unique_ptr<Session> session_;
};

TEST_F(BackupSession, PromotesExactlyTheLastAcknowledgedEpochWhenTheLinkBreaks) {
  protect(20);
  EXPECT_GT(primary_->received[FrameType::heartbeat], 0);
  EXPECT_EQ(session_->snapshot().state, State::standby);
  primary_->close();
  expect_goes_on_from_last_epoch();
  const Snapshot snapshot = session_->snapshot();
  EXPECT_EQ(snapshot.acked, 20u);
  EXPECT_EQ(snapshot.applied, 20u);
  EXPECT_EQ(arbiter_.record().owner, "b");
  EXPECT_EQ(arbiter_.record().epoch, 20u);
  EXPECT_EQ(session_->order_failover().code(), Code::exists);
}

TEST_F(BackupSession, PromotesAfterSilenceOnAnOpenLink) {
  options_.heartbeat_interval = milliseconds(50);  // the detector's exact arithmetic has tests of its own
  options_.heartbeat_lost = 20;
  protect(2);
  primary_->heartbeats = false;
  const Time silent = Clock::now();
  expect_goes_on_from_last_epoch();
  EXPECT_GE(Clock::now() - silent, milliseconds(500));
}

TEST_F(BackupSession, ATornEpochIsForgotten) {
  protect(3);
  primary_->send_epoch_data();
  ASSERT_TRUE(primary_->flush());
  primary_->close();
  expect_goes_on_from_last_epoch();
  EXPECT_EQ(session_->snapshot().acked, 3u);
}

TEST_F(BackupSession, ACommitThatIsWrongIsALoss) {
  protect(3);
  primary_->send_epoch_data();
  ++primary_->commit().digest;
  primary_->send_commit();
  EXPECT_TRUE(primary_->expect_closed());
  EXPECT_EQ(primary_->acked, 3u);
  expect_goes_on_from_last_epoch();
}

TEST_F(BackupSession, AnEpochBeyondTheStagingLimitIsALossAndGrowsNothing) {
  options_.staging_limit_bytes = 16u << 10;
  connect();
  ASSERT_TRUE(primary_->shake_hands(facts()));
  ASSERT_TRUE(primary_->commit_epoch());
  primary_->send_epoch_data();
  primary_->send_commit();
  EXPECT_TRUE(primary_->expect_closed());
  expect_goes_on_from_last_epoch();
  EXPECT_NE(session_->snapshot().end.message().find("staging limit"), std::string::npos);
}

TEST_F(BackupSession, AnEpochOutOfOrderIsALoss) {
  protect(3);
  primary_->epoch = 7;
  primary_->send_epoch_data();
  EXPECT_TRUE(primary_->expect_closed());
  expect_goes_on_from_last_epoch();
}

TEST_F(BackupSession, LosesTheRightToRunAndDestroysTheStandby) {
  arbiter_.script({Verdict::lost});
  protect(3);
  primary_->close();
  ASSERT_TRUE(reaches(State::ended));
  EXPECT_FALSE(was(State::promoting));
  EXPECT_NE(session_->snapshot().end.message().find("node a"), std::string::npos);
  EXPECT_FALSE(session_->order_failover().ok());
}

TEST_F(BackupSession, FreezesWhileTheArbiterIsSilentThenWins) {
  arbiter_.stay_unknown(true);
  protect(3);
  primary_->close();
  ASSERT_TRUE(reaches(State::frozen));
  const int asked = arbiter_.asked();
  const Time deadline = Clock::now() + std::chrono::seconds(5);
  while (arbiter_.asked() < asked + 10 && Clock::now() < deadline) std::this_thread::yield();
  EXPECT_FALSE(was(State::promoting));
  arbiter_.stay_unknown(false);
  expect_goes_on_from_last_epoch();
}

TEST_F(BackupSession, LossBeforeTheFirstCommitIsAFailureAndAsksNobody) {
  protect(0);
  EXPECT_EQ(session_->order_failover().code(), Code::unsafe);
  primary_->send_epoch_data();
  ASSERT_TRUE(primary_->flush());
  primary_->close();
  ASSERT_TRUE(reaches(State::failed));
  EXPECT_EQ(arbiter_.asked(), 0);
  EXPECT_FALSE(was(State::deciding));
}

TEST_F(BackupSession, ShowsTheFirstSyncsProgress) {
  protect(0);
  primary_->send_epoch_data();
  EXPECT_TRUE(primary_->expect(FrameType::progress));
  EXPECT_TRUE(primary_->expect(FrameType::heartbeat));
  EXPECT_TRUE(primary_->pump([&] { return primary_->heartbeat.echo_ns > 0; }));
}

TEST_F(BackupSession, FollowsAnOperatorsOrderHere) {
  protect(3);
  ASSERT_TRUE(session_->order_failover().ok());
  ASSERT_TRUE(session_->order_failover().ok() || was(State::promoted)) << "twice is harmless";
  EXPECT_TRUE(primary_->expect_closed());
  expect_goes_on_from_last_epoch();
  EXPECT_EQ(arbiter_.asked(), 1);
}

TEST_F(BackupSession, FollowsAnOrderFromThePrimary) {
  protect(3);
  primary_->send(FrameType::order, ckpt::Order{});
  EXPECT_TRUE(primary_->expect_closed());
  expect_goes_on_from_last_epoch();
}

TEST_F(BackupSession, AnEpochThatTheNextOnesFramesHaveAppliedIsPromoted) {
  protect(3);
  primary_->send_epoch_data();
  primary_->send_commit();
  primary_->remember();
  primary_->send_epoch_data();
  primary_->send(FrameType::order, ckpt::Order{});
  // The receive thread is not idle before the link is closed.
  for (int i = 0; i < 5000; ++i) primary_->send(FrameType::heartbeat, ckpt::Heartbeat{1, 0});
  EXPECT_TRUE(primary_->expect_closed());
  expect_goes_on_from_last_epoch();
  EXPECT_EQ(session_->snapshot().applied, 4u);
}

TEST_F(BackupSession, InASwitchoverTheLoadedGuestIsHeardOfOnlyOnceTheRightToRunIsWon) {
  arbiter_.stay_unknown(true);
  protect(5);
  primary_->send(FrameType::order, ckpt::Order{ckpt::OrderKind::switchover});
  ASSERT_TRUE(primary_->flush());
  ASSERT_TRUE(reaches(State::loading));
  ASSERT_TRUE(reaches(State::frozen));
  EXPECT_FALSE(promoted_.has_value());
  arbiter_.stay_unknown(false);
  expect_goes_on_from_last_epoch();
}

TEST_F(BackupSession, ALoadedGuestThatLosesTheRightToRunIsDestroyed) {
  arbiter_.script({Verdict::lost});
  protect(5);
  primary_->send(FrameType::order, ckpt::Order{ckpt::OrderKind::switchover});
  ASSERT_TRUE(primary_->flush());
  ASSERT_TRUE(reaches(State::ended));
  EXPECT_TRUE(was(State::loading));
  EXPECT_FALSE(promoted_.has_value());
}

TEST_F(BackupSession, AStateThatCannotBeLoadedIsToldInASwitchoverAndNobodyIsAsked) {
  protect(5);
  primary_->spoil_device = true;
  ASSERT_TRUE(primary_->commit_epoch());
  primary_->send(FrameType::order, ckpt::Order{ckpt::OrderKind::switchover});
  ASSERT_TRUE(primary_->expect(FrameType::goodbye));
  EXPECT_NE(primary_->refuse.code, Code::ok) << "the guest does not run here";
  ASSERT_TRUE(reaches(State::failed));
  EXPECT_EQ(arbiter_.asked(), 0);
  EXPECT_FALSE(was(State::deciding));
}

TEST_F(BackupSession, GoodbyeEndsInOrder) {
  protect(3);
  primary_->send(FrameType::goodbye, ckpt::Refuse{Code::ok, "unprotect"});
  EXPECT_TRUE(primary_->expect_closed());
  ASSERT_TRUE(reaches(State::ended));
  EXPECT_EQ(arbiter_.asked(), 0);
}

TEST_F(BackupSession, RefusesAMachineThatDiffersAndNamesAllDifferences) {
  connect();
  guest::Definition other = definition_;
  other.vcpus = 4;
  other.cpu = "sim128";
  auto standby = guest::prepare(other, options_.driver);
  ASSERT_TRUE(standby.ok());
  EXPECT_FALSE(primary_->shake_hands(guest::to_json((*standby)->facts())));
  EXPECT_EQ(primary_->received[FrameType::refuse], 1);
  EXPECT_NE(primary_->refuse.reason.find("sim128"), std::string::npos) << primary_->refuse.reason;
  EXPECT_NE(primary_->refuse.reason.find("4"), std::string::npos) << primary_->refuse.reason;
  EXPECT_EQ(primary_->refuse.reason.find('\n'), std::string::npos);
  primary_->close();
  EXPECT_TRUE(reaches(State::failed));
}

TEST_F(BackupSession, RefusesWhatIsNotAdmitted) {
  admission_ = Status(Code::exists, "vm1 already runs here");
  connect();
  primary_->send(FrameType::hello, primary_->hello());
  ASSERT_TRUE(primary_->expect(FrameType::refuse));
  EXPECT_EQ(primary_->refuse.reason, "vm1 already runs here");
  EXPECT_EQ(primary_->refuse.code, Code::exists);
  primary_->close();
  EXPECT_TRUE(reaches(State::failed));
}

// Two hosts with an arbiter each would both win.
TEST_F(BackupSession, RefusesAGenerationThatItsOwnArbiterDoesNotShow) {
  const arbiter::Record shown = arbiter_.record();
  for (const auto& [generation, owner] : {std::pair<uint64_t, const char*>{shown.generation - 1, "a"},
                                          {shown.generation + 1, "a"},
                                          {shown.generation, "c"}}) {
    arbiter::Record other = shown;
    other.generation = generation;
    other.owner = owner;
    arbiter_.set_record(other);
    connect();
    primary_->send(FrameType::hello, primary_->hello());
    ASSERT_TRUE(primary_->expect(FrameType::refuse));
    EXPECT_EQ(primary_->refuse.code, Code::unsafe);
    EXPECT_NE(primary_->refuse.reason.find("must use the same arbiter"), std::string::npos);
    primary_->close();
    session_.reset();
  }
}

TEST_F(BackupSession, RefusesAnotherVersion) {
  connect();
  ckpt::Hello hello = primary_->hello();
  hello.version_min = hello.version_max = 9;
  primary_->send(FrameType::hello, hello);
  ASSERT_TRUE(primary_->expect(FrameType::refuse));
  EXPECT_EQ(primary_->received[FrameType::hello], 0);
  primary_->close();
}

TEST_F(BackupSession, RefusesADefinitionThatIsNone) {
  for (const char* text : {"{", "[]", R"({"definition":{}})", R"({"definition":3})"}) {
    connect();
    primary_->send(FrameType::hello, primary_->hello());
    ASSERT_TRUE(primary_->expect(FrameType::hello));
    primary_->send_text(FrameType::definition, text);
    ASSERT_TRUE(primary_->expect(FrameType::refuse)) << text;
    primary_->close();  // as a primary does; the session would wait a second for it
    session_.reset();
  }
}

TEST_F(BackupSession, AStrangerIsShownTheDoor) {
  for (const std::string& text :
       {std::string(200, 'x'), std::string("GET / HTTP/1.1\r\nHost: b\r\n\r\n-----------------------")}) {
    auto [ours, theirs] = tcp_pair();
    auto session = Session::start(std::move(theirs), arbiter_, options_, {});
    ASSERT_TRUE(session.ok());
    ASSERT_EQ(::send(ours.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    char byte;
    EXPECT_LE(::recv(ours.get(), &byte, 1, 0), 0) << "closed without a word";
  }
  options_.handshake_timeout = milliseconds(50);
  auto [ours, theirs] = tcp_pair();
  auto session = Session::start(std::move(theirs), arbiter_, options_, {});
  ASSERT_TRUE(session.ok());
  char byte;
  EXPECT_LE(::recv(ours.get(), &byte, 1, 0), 0) << "who says nothing is not waited for";
}

TEST_F(BackupSession, DataBeforeTheHandshakeIsNotTaken) {
  for (const bool hello : {false, true}) {
    connect();
    if (hello) {
      primary_->send(FrameType::hello, primary_->hello());
      ASSERT_TRUE(primary_->expect(FrameType::hello));
    }
    primary_->send_epoch_data();
    EXPECT_TRUE(primary_->expect_closed());
    session_.reset();
  }
}

TEST_F(BackupSession, AFrameOfAnotherGenerationIsALoss) {
  for (const int step : {-1, 1}) {
    protect(2);
    primary_->link().writer().set_generation(kTestGeneration + step);
    primary_->send(FrameType::goodbye, ckpt::Refuse{Code::ok, "from another time"});
    EXPECT_TRUE(primary_->expect_closed());
    expect_goes_on_from_last_epoch();
    session_.reset();
    arbiter_.set_record(
        {.generation = kTestGeneration, .owner = "a", .boot_id = "", .epoch = 0, .nonce = "x", .peer = ""});
    states_.clear();
    promoted_.reset();
  }
}

TEST_F(BackupSession, EndsAndIsDestroyedAtAnyStageWithoutHanging) {
  for (int stage = 0; stage < 6; ++stage) {
    SCOPED_TRACE(stage);
    arbiter_.stay_unknown(stage == 5);
    connect();
    if (stage >= 1) {
      primary_->send(FrameType::hello, primary_->hello());
      ASSERT_TRUE(primary_->expect(FrameType::hello));
    }
    if (stage >= 2) {
      primary_->send_definition();
      ASSERT_TRUE(primary_->expect(FrameType::need_files));
      primary_->send_text(FrameType::facts, facts());
      ASSERT_TRUE(primary_->expect(FrameType::ready));
    }
    if (stage >= 3) {
      ASSERT_TRUE(primary_->commit_epoch());
    }
    if (stage >= 4) {
      ASSERT_TRUE(primary_->commit_epoch());
    }
    if (stage == 5) {
      primary_->close();
      ASSERT_TRUE(reaches(State::frozen));
    }
    if (stage % 2 == 0) {
      session_->end("enough");
      ASSERT_TRUE(reaches(State::ended));
      if (stage >= 2) {
        EXPECT_TRUE(primary_->expect(FrameType::goodbye));
        EXPECT_EQ(primary_->refuse.reason, "enough");
      }
    }
    const Time begin = Clock::now();
    session_.reset();
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(3));
    EXPECT_FALSE(promoted_.has_value());
    states_.clear();
  }
}

// Boot files.

class BackupBootFiles : public BackupSession {
 protected:
  BackupBootFiles() {
    std::filesystem::create_directories(directory_ + "/a");
    write(directory_ + "/a/kernel", std::string(300000, 'k') + "kernel");
    write(directory_ + "/a/initrd", "initrd");
    kernel_ = *digest_of_file(directory_ + "/a/kernel");
    initrd_ = *digest_of_file(directory_ + "/a/initrd");
    definition_.kernel = "/not/here/kernel";
    definition_.initrd = directory_ + "/a/initrd";
  }
  static void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }
  static std::string read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string list() const {
    return R"([{"role":"kernel","digest":")" + kernel_ + R"(","bytes":300006},{"role":"initrd","digest":")" +
           initrd_ + R"(","bytes":6}])";
  }
  void begin() {
    connect();
    primary_->send(FrameType::hello, primary_->hello());
    ASSERT_TRUE(primary_->expect(FrameType::hello));
    primary_->send_definition(list());
  }
  void send_file(const std::string& content, const std::string& digest) {
    for (size_t offset = 0; offset < content.size(); offset += 100000) {
      const auto data = std::as_bytes(std::span(content))
                            .subspan(offset, std::min<size_t>(100000, content.size() - offset));
      primary_->send(FrameType::file, ckpt::FilePart{digest, content.size(), offset, data});
    }
  }
  std::string kernel_, initrd_;
};

TEST_F(BackupBootFiles, OnlyWhatIsMissingIsAskedForAndKept) {
  begin();
  ASSERT_TRUE(primary_->expect(FrameType::need_files));
  ASSERT_EQ(primary_->needs.files.size(), 1u) << "the initrd is at the path given";
  EXPECT_EQ(primary_->needs.files[0].digest, kernel_);
  const std::string content = read(directory_ + "/a/kernel");
  send_file(content, kernel_);
  primary_->send_text(FrameType::facts, facts());
  ASSERT_TRUE(primary_->expect(FrameType::ready)) << primary_->refuse.reason;
  EXPECT_EQ(read(options_.files_dir + "/" + kernel_), content);
  ASSERT_TRUE(primary_->commit_epoch());
  primary_->close();
  ASSERT_TRUE(reaches(State::promoted));
  EXPECT_EQ(promoted_->definition.kernel, options_.files_dir + "/" + kernel_);
  EXPECT_EQ(promoted_->definition.initrd, directory_ + "/a/initrd");

  // The next session asks for nothing.
  session_.reset();
  arbiter_.set_record({.generation = kTestGeneration,
                       .owner = "a",
                       .boot_id = "",
                       .epoch = 0,
                       .nonce = "protect",
                       .peer = ""});
  begin();
  ASSERT_TRUE(primary_->expect(FrameType::need_files));
  EXPECT_TRUE(primary_->needs.files.empty());
}

TEST_F(BackupBootFiles, AFileWithAnotherContentIsRefusedAndNotKept) {
  begin();
  ASSERT_TRUE(primary_->expect(FrameType::need_files));
  send_file(std::string(300006, 'x'), kernel_);
  ASSERT_TRUE(primary_->expect(FrameType::refuse));
  primary_->close();
  session_.reset();
  EXPECT_TRUE(std::filesystem::is_empty(options_.files_dir)) << "nor is a part of it";
}

TEST_F(BackupBootFiles, ADigestIsNoPath) {
  kernel_ = "../../../../etc/passwd0000000000";
  begin();
  ASSERT_TRUE(primary_->expect(FrameType::refuse));
  EXPECT_NE(primary_->refuse.reason.find("hexadecimal"), std::string::npos);
  primary_->close();
}

}  // namespace
}  // namespace remusd::backup
