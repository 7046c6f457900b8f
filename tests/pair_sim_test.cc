// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A whole pair on one machine: primary::Protection and backup::Session over TCP, a simulated guest, real
// gates, the file arbiter, with plain text between them and with TLS. A client judges from the replies alone:
// a counter that it saw must never come again. The replica's TAP needs CAP_NET_ADMIN and /dev/net/tun; where
// they are missing the tests skip and say so. FAULTS.md 1, 2, 3, 17, 20, 23, 38, 41.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "backup/session.h"
#include "guest/sim/protocol.h"
#include "primary/protection.h"
#include "tests/ckpt_tls_keys.h"
#include "tests/loopback.h"
#include "tests/patience.h"

namespace remusd {
namespace {

using guest::sim::Message;
using guest::sim::parse_frame;
using std::chrono::milliseconds;

/// One side's way to the arbiter, which a test can cut.
class CutArbiter : public arbiter::Arbiter {
 public:
  explicit CutArbiter(arbiter::Arbiter& whole) : whole_(whole) {}
  std::atomic<bool> cut = false;

  Result<std::optional<arbiter::Record>> read(const std::string& vm, Time deadline) override {
    if (cut) return Status(Code::unavailable, "cut off");
    return whole_.read(vm, deadline);
  }
  arbiter::Answer compare_and_swap(const std::string& vm, uint64_t expected, const arbiter::Record& desired,
                                   Time deadline) override {
    if (cut) return {arbiter::Verdict::unknown, std::nullopt, Status(Code::unavailable, "cut off")};
    return whole_.compare_and_swap(vm, expected, desired, deadline);
  }
  std::string describe() const override { return whole_.describe(); }

 private:
  arbiter::Arbiter& whole_;
};

/// Listens to both hosts. What the guest says there must only ever go up.
class Client {
 public:
  Client(int primary_side, const std::string& mac) : primary_side_(primary_side), mac_(to_bytes(mac)) {
    // Sees what any TAP of this namespace is given, from its very first frame.
    replica_side_.reset(
        ::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, htons(guest::sim::kEtherType)));
    thread_ = std::thread([this] { run(); });
  }
  ~Client() {
    stop_ = true;
    thread_.join();
  }
  void ask(uint64_t id) {
    const auto frame = request(id);
    ASSERT_EQ(::write(primary_side_, frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
  }
  void ask_replica(const std::string& tap, uint64_t id) {
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_ifindex = static_cast<int>(::if_nametoindex(tap.c_str()));
    ASSERT_NE(address.sll_ifindex, 0) << tap;
    const auto frame = request(id);
    ASSERT_EQ(::sendto(replica_side_.get(), frame.data(), frame.size(), 0,
                       reinterpret_cast<sockaddr*>(&address), sizeof address),
              static_cast<ssize_t>(frame.size()));
  }
  bool answered(uint64_t id) const {
    const std::lock_guard lock(mutex_);
    return answered_.contains(id);
  }

  std::atomic<uint64_t> from_primary = 0, from_replica = 0;  // frames
  std::atomic<uint64_t> seen = 0;                            // highest counter
  std::atomic<uint64_t> rolled_back = 0;

 private:
  static guest::sim::MacBytes to_bytes(const std::string& mac) {
    guest::sim::MacBytes bytes;
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<uint8_t>(std::stoi(mac.substr(3 * i, 2), nullptr, 16));
    return bytes;
  }
  guest::sim::FrameBytes request(uint64_t id) const {
    return guest::sim::to_frame({.to = mac_, .from = {2, 0, 0, 0, 0, 1}, .id = id});
  }
  void run() {
    while (!stop_) {
      pollfd sides[] = {{primary_side_, POLLIN, 0}, {replica_side_.get(), POLLIN, 0}};
      ::poll(sides, 2, 20);
      if (sides[0].revents & POLLIN) take(primary_side_, &from_primary);
      if (sides[1].revents & POLLIN) take(replica_side_.get(), &from_replica);
    }
  }
  void take(int side, std::atomic<uint64_t>* frames) {
    std::array<std::byte, 2048> buffer;
    const ssize_t got = ::recv(side, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got <= 0) return;
    const auto message = parse_frame(std::span(buffer).first(static_cast<size_t>(got)));
    if (!message || message->from != mac_) return;
    ++*frames;
    if (message->counter <= seen) ++rolled_back;
    seen = std::max<uint64_t>(seen, message->counter);
    const std::lock_guard lock(mutex_);
    answered_.insert(message->id);
  }

  int primary_side_;
  ScopedFd replica_side_;
  guest::sim::MacBytes mac_;
  mutable std::mutex mutex_;
  std::set<uint64_t> answered_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

class PairSim : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const std::string unique = std::to_string(::getpid());
    definition_.name = "pair" + unique;
    definition_.driver = "sim";
    definition_.memory_mib = 8;
    definition_.nics.resize(1);
    definition_.nics[0].tap = "rp" + unique;
    ASSERT_TRUE(guest::complete_and_validate(&definition_).ok());
    const auto tap = netbuf::open_tap(definition_.nics[0].tap, "");
    if (!tap.ok()) GTEST_SKIP() << "needs CAP_NET_ADMIN and /dev/net/tun: " << tap.status().message();
    char pattern[] = "/tmp/remusd-pair-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    std::filesystem::create_directories(directory_ + "/arbiter");
    arbiter_ = *arbiter::open_file_arbiter(directory_ + "/arbiter");
    primary_arbiter_.emplace(*arbiter_);
    backup_arbiter_.emplace(*arbiter_);
    start_guest();
  }
  void TearDown() override {
    protection_.reset();
    session_.reset();
    client_.reset();
    net_.reset();
    if (guest_) (void)guest_->destroy();
    guest_.reset();
    if (promoted_.guest) (void)promoted_.guest->destroy();
    promoted_ = {};
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  void start_guest() {
    driver_.runtime_dir = directory_;
    guest_ = *guest::start(definition_, driver_);
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    client_end_.reset(ends[1]);
    std::vector<netbuf::Nic> nics;
    const guest::NicEndpoint& endpoint = guest_->nics()[0];
    nics.push_back({endpoint.id, endpoint.mac, endpoint.socket_path, ScopedFd(ends[0])});
    auto net = netbuf::NetBuffer::start(std::move(nics), {}, definition_.name, /*holding=*/false);
    ASSERT_TRUE(net.ok()) << net.status().message();
    net_ = *std::move(net);
    client_.emplace(client_end_.get(), endpoint.mac);
  }

  void protect() {
    const Listener listener;

    primary::Options ours;
    ours.node = "a";
    ours.peer = "b";
    ours.peer_address = listener.address;
    ours.pace = pace_;
    ours.shadow_bytes = shadow_bytes_;
    ours.heartbeat_lost = 50;  // the machine may be busy with other tests
    ours.arbiter_timeout = milliseconds(200);
    if (GetParam()) ours.tls = keys_.node("a");
    auto protection = primary::Protection::start(*guest_, definition_, *net_, *primary_arbiter_, ours,
                                                 primary::Callbacks{});
    ASSERT_TRUE(protection.ok()) << protection.status().message();
    protection_ = *std::move(protection);

    pollfd waiting{listener.socket.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&waiting, 1, 10000), 1);
    ScopedFd accepted = listener.accept();
    cable_.reset(::fcntl(accepted.get(), F_DUPFD_CLOEXEC, 0));
    backup::Options theirs;
    theirs.node = "b";
    theirs.heartbeat_lost = 50;
    theirs.arbiter_timeout = milliseconds(200);
    theirs.driver = driver_;
    theirs.files_dir = directory_ + "/files";
    theirs.fence = fence_;
    if (GetParam()) theirs.tls = keys_.node("b");
    backup::Callbacks callbacks;
    callbacks.on_promoted = [this](backup::Promoted promoted) { promoted_ = std::move(promoted); };
    auto session =
        backup::Session::start(std::move(accepted), *backup_arbiter_, theirs, std::move(callbacks));
    ASSERT_TRUE(session.ok()) << session.status().message();
    session_ = *std::move(session);
    ASSERT_TRUE(eventually([&] { return protection_->snapshot().state == primary::State::protecting; }))
        << protection_->snapshot().end.message() << " / " << session_->snapshot().end.message();
  }
  /// Traffic for a while, judged by epochs.
  void talk(uint64_t epochs) {
    const uint64_t until = protection_->snapshot().acked + epochs;
    ASSERT_TRUE(eventually([&] {
      client_->ask(++id_);
      return protection_->snapshot().acked >= until;
    }));
    ASSERT_TRUE(eventually([&] { return client_->answered(id_); }));
  }
  void cut() { ::shutdown(cable_.get(), SHUT_RDWR); }
  bool primary_becomes(primary::State state) {
    return eventually([&] { return protection_->snapshot().state == state; });
  }
  bool backup_becomes(backup::State state) {
    return eventually([&] { return session_->snapshot().state == state; });
  }
  void expect_replica_answers() {
    const uint64_t before = client_->seen;
    ASSERT_TRUE(eventually([&] { return client_->from_replica > 0; }));
    client_->ask_replica(definition_.nics[0].tap, ++id_);
    EXPECT_TRUE(eventually([&] { return client_->answered(id_); }));
    EXPECT_GT(client_->seen, before);
    EXPECT_EQ(client_->rolled_back, 0u);
    EXPECT_EQ(promoted_.generation, (*arbiter_->read(definition_.name, Time::max()))->generation);
  }

  ckpt::TestKeys keys_;
  std::string directory_;
  guest::Definition definition_;
  guest::DriverOptions driver_;
  primary::PaceOptions pace_{milliseconds(10)};
  std::unique_ptr<arbiter::Arbiter> arbiter_;
  std::optional<CutArbiter> primary_arbiter_, backup_arbiter_;
  std::unique_ptr<guest::Guest> guest_;
  ScopedFd client_end_, cable_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  std::optional<Client> client_;
  backup::Promoted promoted_;
  std::unique_ptr<backup::Session> session_;
  std::unique_ptr<primary::Protection> protection_;
  uint64_t id_ = 0;
  std::function<Status(const std::string& peer, const std::stop_token& stop)> fence_;
  size_t shadow_bytes_ = primary::Options().shadow_bytes;
};

TEST_P(PairSim, NothingThatWasHeardIsTakenBackWhenTheReplicaTakesOver) {
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(60));
  EXPECT_GT(client_->from_primary, 0u);
  primary_arbiter_->cut = true;  // the primary's host is as good as gone
  cut();
  ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
  RecordProperty("promote_us", static_cast<int>(session_->snapshot().promote_seconds * 1e6));
  ASSERT_NO_FATAL_FAILURE(expect_replica_answers());

  // It comes back, learns that it lost, and what it held is never heard.
  ASSERT_TRUE(primary_becomes(primary::State::frozen));
  primary_arbiter_->cut = false;
  ASSERT_TRUE(primary_becomes(primary::State::fenced));
  const uint64_t said = client_->from_primary;
  ASSERT_NO_FATAL_FAILURE(expect_replica_answers());
  EXPECT_EQ(client_->from_primary, said);
}

TEST_P(PairSim, OutputThatWaitsEndsEpochsEarly) {
  pace_.interval = milliseconds(500);
  pace_.latency_target = milliseconds(4);
  pace_.epoch_min = milliseconds(1);
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  const auto reasons = protection_->snapshot().epochs_by_reason;
  EXPECT_GE(reasons[static_cast<size_t>(EpochReason::output)], 15u);
  EXPECT_EQ(client_->rolled_back, 0u);
}

// The replica refuses memory that is not that of its device state: a wrong delta would be seen.
TEST_P(PairSim, TheReplicaIsTheGuestOfTheCommittedEpochWhateverTheShadowHolds) {
  for (const size_t pages : {2048u, 64u, 1u, 0u}) {
    SCOPED_TRACE("a shadow of " + std::to_string(pages) + " pages");
    if (pages != 2048) {
      TearDown();
      SetUp();
    }
    shadow_bytes_ = pages * kPageSize;
    ASSERT_NO_FATAL_FAILURE(protect());
    ASSERT_NO_FATAL_FAILURE(talk(60));
    const primary::Snapshot snapshot = protection_->snapshot();
    EXPECT_EQ(snapshot.shadow_used_bytes > 0, pages > 0);
    if (pages == 64) {
      EXPECT_EQ(snapshot.shadow_used_bytes, snapshot.shadow_limit_bytes) << "pages made room";
    }
    primary_arbiter_->cut = true;
    cut();
    ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
    ASSERT_NO_FATAL_FAILURE(expect_replica_answers());
  }
}

TEST_P(PairSim, WhoeverWinsTheRaceIsHeardAndTheOtherIsNot) {
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  cut();
  ASSERT_TRUE(eventually([&] {
    const auto state = protection_->snapshot().state;
    return state == primary::State::unprotected || state == primary::State::fenced;
  }));
  if (protection_->snapshot().state == primary::State::fenced) {
    ASSERT_TRUE(backup_becomes(backup::State::promoted));
    ASSERT_NO_FATAL_FAILURE(expect_replica_answers());
  } else {
    ASSERT_TRUE(backup_becomes(backup::State::ended));
    const uint64_t id = ++id_;
    client_->ask(id);
    EXPECT_TRUE(eventually([&] { return client_->answered(id); }));
    EXPECT_EQ(client_->from_replica, 0u);
  }
  EXPECT_EQ(client_->rolled_back, 0u);
}

TEST_P(PairSim, TheGuestGoesOnWhenTheBackupIsLostAndProtectWorksAgain) {
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  backup_arbiter_->cut = true;
  cut();
  ASSERT_TRUE(primary_becomes(primary::State::unprotected));
  const uint64_t id = ++id_;
  client_->ask(id);
  EXPECT_TRUE(eventually([&] { return client_->answered(id); }));
  backup_arbiter_->cut = false;
  ASSERT_TRUE(backup_becomes(backup::State::ended));
  protection_.reset();
  session_.reset();
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  EXPECT_EQ(client_->rolled_back, 0u);
  EXPECT_EQ(client_->from_replica, 0u);
}

TEST_P(PairSim, UnprotectEndsTheStandbyInOrder) {
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(10));
  protection_->unprotect("enough");
  ASSERT_TRUE(primary_becomes(primary::State::unprotected));
  ASSERT_TRUE(backup_becomes(backup::State::ended));
  const uint64_t id = ++id_;
  client_->ask(id);
  EXPECT_TRUE(eventually([&] { return client_->answered(id); }));
  EXPECT_EQ(client_->rolled_back, 0u);
}

TEST_P(PairSim, AnOrderedFailoverMovesTheGuestFromEitherSide) {
  for (const bool here : {true, false}) {
    SCOPED_TRACE(here ? "ordered at the primary" : "ordered at the backup");
    if (!here) {
      TearDown();
      SetUp();
    }
    ASSERT_NO_FATAL_FAILURE(protect());
    ASSERT_NO_FATAL_FAILURE(talk(20));
    if (here) {
      protection_->order_failover();
    } else {
      ASSERT_TRUE(session_->order_failover().ok());
    }
    ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
    ASSERT_TRUE(primary_becomes(primary::State::fenced));
    ASSERT_NO_FATAL_FAILURE(expect_replica_answers());
  }
}

TEST_P(PairSim, ASwitchoverLosesNothingNotEvenWhatComesWhileTheGuestStands) {
  for (const bool here : {true, false}) {
    SCOPED_TRACE(here ? "ordered at the primary" : "asked for at the backup");
    if (!here) {
      TearDown();
      SetUp();
    }
    ASSERT_NO_FATAL_FAILURE(protect());
    ASSERT_NO_FATAL_FAILURE(talk(20));
    backup_arbiter_->cut = true;  // so that the guest stands until we have asked
    if (here) {
      protection_->order_switchover();
    } else {
      ASSERT_TRUE(session_->order_switchover().ok());
    }
    ASSERT_TRUE(backup_becomes(backup::State::frozen));
    const uint64_t id = ++id_;
    client_->ask(id);
    ASSERT_FALSE(client_->answered(id));
    backup_arbiter_->cut = false;
    ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
    EXPECT_TRUE(eventually([&] { return client_->answered(id); })) << "it was asked at the old place, once";
    EXPECT_GT(client_->from_replica, 0u);
    ASSERT_TRUE(primary_becomes(primary::State::fenced));
    EXPECT_TRUE(protection_->snapshot().end.ok()) << protection_->snapshot().end.message();
    EXPECT_GT(protection_->snapshot().switchover_seconds, 0);
    ASSERT_NO_FATAL_FAILURE(expect_replica_answers());
  }
}

TEST_P(PairSim, ASwitchoverThatTheBackupCannotFollowGivesTheGuestBack) {
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  backup_arbiter_->cut = true;
  protection_->order_switchover();
  ASSERT_TRUE(primary_becomes(primary::State::unprotected));
  const uint64_t id = ++id_;
  client_->ask(id);
  EXPECT_TRUE(eventually([&] { return client_->answered(id); }));
  EXPECT_EQ(client_->rolled_back, 0u);
  EXPECT_EQ(client_->from_replica, 0u);
  backup_arbiter_->cut = false;
  EXPECT_TRUE(backup_becomes(backup::State::ended));
}

TEST_P(PairSim, ASwitchoverToAHostThatCannotRunTheGuestLosesNothingAndLetsItRunOn) {
  definition_.nics[0].bridge = "no-such-bridge";  // which only the replica would be plugged into here
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  const uint64_t first = id_ + 1;
  protection_->order_switchover();
  ASSERT_TRUE(eventually([&] {
    client_->ask(++id_);
    return protection_->snapshot().state == primary::State::unprotected;
  }));
  const std::string why = protection_->snapshot().end.message();
  EXPECT_NE(why.find("no-such-bridge"), std::string::npos) << why;
  ASSERT_TRUE(backup_becomes(backup::State::failed));
  EXPECT_EQ((*arbiter_->read(definition_.name, Time::max()))->owner, "a");
  for (uint64_t id = first; id <= id_; ++id)
    ASSERT_TRUE(eventually([&] { return client_->answered(id); })) << "also what came while it stood";
  EXPECT_EQ(client_->rolled_back, 0u);
  EXPECT_EQ(client_->from_replica, 0u);
}

TEST_P(PairSim, AForcedFailoverNeedsNoArbiter) {
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  backup_arbiter_->cut = true;
  primary_arbiter_->cut = true;
  cut();
  ASSERT_TRUE(backup_becomes(backup::State::frozen));
  ASSERT_TRUE(primary_becomes(primary::State::frozen));
  EXPECT_EQ(client_->from_replica, 0u) << "nobody is heard";
  ASSERT_TRUE(session_->force_failover().ok());
  ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
  EXPECT_TRUE(promoted_.forced);
  EXPECT_TRUE(eventually([&] { return client_->from_replica > 0; }));
  EXPECT_EQ(client_->rolled_back, 0u);
}

TEST_P(PairSim, AFenceAgentThatFailsKeepsTheGuestWaitingAndOneThatSucceedsLetsItRun) {
  std::atomic<int> asked = 0;
  fence_ = [&](const std::string& peer, const std::stop_token&) {
    EXPECT_EQ(peer, "a");
    return ++asked < 3 ? Status(Code::io, "no answer from the power switch") : Status();
  };
  ASSERT_NO_FATAL_FAILURE(protect());
  ASSERT_NO_FATAL_FAILURE(talk(20));
  primary_arbiter_->cut = true;
  cut();
  ASSERT_TRUE(backup_becomes(backup::State::promoted)) << session_->snapshot().end.message();
  EXPECT_EQ(asked, 3);
  ASSERT_NO_FATAL_FAILURE(expect_replica_answers());
}
INSTANTIATE_TEST_SUITE_P(Transports, PairSim, testing::Bool(),
                         [](const auto& test) { return test.param ? "Tls" : "Plain"; });

}  // namespace
}  // namespace remusd
