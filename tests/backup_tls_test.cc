// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// backup::Session behind TLS: who is let in, what the others are told, and that nobody waits for a stranger.
// FAULTS.md 43, 44.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "backup/session.h"
#include "tests/backup_fake_primary.h"
#include "tests/ckpt_tls_keys.h"

namespace remusd::backup {
namespace {

using ckpt::FrameType;
using testing::HasSubstr;

class BackupTls : public testing::Test {
 protected:
  BackupTls() {
    char pattern[] = "/tmp/remusd-backup-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    options_.node = "b";
    options_.heartbeat_lost = 100;
    options_.tls = keys_.node("b");
    options_.from = "192.0.2.1:4242";
    options_.driver.runtime_dir = directory_;
    options_.files_dir = directory_ + "/files";
    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = 4;
    EXPECT_TRUE(guest::complete_and_validate(&definition_).ok());
  }
  ~BackupTls() override { std::filesystem::remove_all(directory_); }

  std::unique_ptr<Session> serve(ScopedFd socket) {
    auto session = Session::start(std::move(socket), arbiter_, options_, {});
    EXPECT_TRUE(session.ok()) << session.status().message();
    return *std::move(session);
  }
  std::unique_ptr<FakePrimary> call(ScopedFd socket, const std::string& node) {
    return std::make_unique<FakePrimary>(std::move(socket), definition_, *keys_.node(node)->connect("b"));
  }
  /// The handshake of TLS; whatever is said before has no room.
  static bool secured(FakePrimary& primary) {
    const bool before = std::exchange(primary.heartbeats, false);
    const bool done = primary.pump([&] { return primary.link().secured(); });
    primary.heartbeats = before;
    return done;
  }
  static Status end_of(const Session& session) {
    const Time deadline = Clock::now() + std::chrono::seconds(30);
    while (session.snapshot().state == State::handshake && Clock::now() < deadline) ::usleep(1000);
    return session.snapshot().end;
  }

  ckpt::TestKeys keys_;
  std::string directory_;
  FakeArbiter arbiter_;
  Options options_;
  guest::Definition definition_;
};

TEST_F(BackupTls, ANodeThatIsWhoItSaysIsLetInAndOthersAreToldApart) {
  auto [ours, theirs] = tcp_pair();
  const auto session = serve(std::move(theirs));
  const auto primary = call(std::move(ours), "a");
  primary->heartbeats = false;
  ASSERT_TRUE(secured(*primary));
  primary->send(FrameType::hello, primary->hello());
  EXPECT_TRUE(primary->expect(FrameType::hello)) << primary->refuse.reason;
}

TEST_F(BackupTls, ANodeThatSaysItIsAnotherIsRefusedAndTold) {
  auto [ours, theirs] = tcp_pair();
  const auto session = serve(std::move(theirs));
  const auto primary = call(std::move(ours), "c");  // its HELLO says 'a'
  primary->heartbeats = false;
  ASSERT_TRUE(secured(*primary));
  primary->send(FrameType::hello, primary->hello());
  ASSERT_TRUE(primary->expect(FrameType::refuse));
  EXPECT_EQ(primary->refuse.code, Code::denied);
  EXPECT_THAT(primary->refuse.reason, HasSubstr("node 'c'"));
  EXPECT_THAT(primary->refuse.reason, HasSubstr("'a'"));
  primary->close();
  const Status end = end_of(*session);
  EXPECT_EQ(end.code(), Code::denied);
  EXPECT_THAT(end.message(), HasSubstr("192.0.2.1:4242"));
  EXPECT_THAT(end.message(), HasSubstr("node 'c'"));
  EXPECT_EQ(primary->received[FrameType::need_files], 0);
}

TEST_F(BackupTls, AStrangerWithoutTlsIsRefusedByItsAddress) {
  auto [ours, theirs] = tcp_pair();
  const auto session = serve(std::move(theirs));
  FakePrimary primary(std::move(ours), definition_);
  primary.heartbeats = false;
  primary.send(FrameType::hello, primary.hello());
  EXPECT_TRUE(primary.expect_closed());
  EXPECT_EQ(primary.received[FrameType::hello], 0);
  EXPECT_THAT(primary.link().close_reason().message(), HasSubstr("wants TLS"));
  const Status end = end_of(*session);
  EXPECT_EQ(end.code(), Code::denied);
  EXPECT_THAT(end.message(), HasSubstr("a peer at 192.0.2.1:4242"));
  EXPECT_THAT(end.message(), HasSubstr("does not speak TLS"));
}

TEST_F(BackupTls, StrangersWhoStallKeepNobodyWaitingAndCanBeEnded) {
  std::vector<ScopedFd> silent;
  std::vector<std::unique_ptr<Session>> stalled;
  const Time began = Clock::now();
  for (int i = 0; i < 4; ++i) {
    auto [ours, theirs] = tcp_pair();
    silent.push_back(std::move(ours));
    stalled.push_back(serve(std::move(theirs)));
  }
  auto [ours, theirs] = tcp_pair();
  const auto session = serve(std::move(theirs));
  const auto primary = call(std::move(ours), "a");
  primary->heartbeats = false;
  ASSERT_TRUE(secured(*primary));
  primary->send(FrameType::hello, primary->hello());
  EXPECT_TRUE(primary->expect(FrameType::hello));
  stalled.clear();  // joins
  EXPECT_LT(Clock::now() - began, ckpt::kTlsPatience) << "none of it waited for a stranger's time to be over";
}

TEST_F(BackupTls, AnEpochIsCommittedThroughTls) {
  auto [ours, theirs] = tcp_pair();
  const auto session = serve(std::move(theirs));
  const auto primary = call(std::move(ours), "a");
  primary->heartbeats = false;
  ASSERT_TRUE(secured(*primary));
  primary->heartbeats = true;
  const auto standby = guest::prepare(definition_, options_.driver);
  ASSERT_TRUE(standby.ok()) << standby.status().message();
  const std::string facts = guest::to_json((*standby)->facts());
  ASSERT_TRUE((*standby)->destroy().ok());
  ASSERT_TRUE(primary->shake_hands(facts)) << primary->refuse.reason;
  EXPECT_TRUE(primary->commit_epoch());
  EXPECT_TRUE(primary->commit_epoch());
  EXPECT_EQ(session->snapshot().state, State::standby);
}

}  // namespace
}  // namespace remusd::backup
