// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "primary/core.h"

namespace remusd::primary {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = Action::Kind;

constexpr uint64_t kGeneration = 7;
const Time kStart{seconds(1000)};

uint64_t digest(uint64_t epoch) {
  return 1000 + epoch;
}
Status broken() {
  return Status(Code::unavailable, "broken");
}

arbiter::Answer won() {
  arbiter::Answer answer;
  answer.verdict = arbiter::Verdict::won;
  return answer;
}
arbiter::Answer lost(uint64_t generation = kGeneration + 1, const std::string& nonce = "theirs") {
  arbiter::Answer answer;
  answer.verdict = arbiter::Verdict::lost;
  answer.current = arbiter::Record{generation, "b", "boot", 0, nonce, ""};
  return answer;
}
arbiter::Answer unknown() {
  arbiter::Answer answer;
  answer.why = Status(Code::timed_out, "no answer");
  return answer;
}

CoreConfig config() {
  CoreConfig config;
  config.generation = kGeneration;
  config.nonce = "ours";
  config.node = "a";
  config.peer = "b";
  return config;
}

/// A core and what it ordered so far.
struct Bench {
  Core core{config(), kStart};
  Time now = kStart;
  std::vector<Kind> log;

  void take(const Actions& actions) {
    for (const Action& action : actions) log.push_back(action.kind);
  }
  size_t count(Kind kind) const { return static_cast<size_t>(std::count(log.begin(), log.end(), kind)); }
  size_t at(Kind kind) const {
    return static_cast<size_t>(std::find(log.begin(), log.end(), kind) - log.begin());
  }
  void seal(uint64_t epoch) {
    if (epoch == 1) core.holding();
    core.sealed(epoch);
  }
  void commit(uint64_t epoch) {
    seal(epoch);
    take(core.sent(epoch, digest(epoch)));
  }
  void ack(uint64_t epoch) { take(core.acked(kGeneration, epoch, digest(epoch), now)); }
  void to_syncing() {
    take(core.link_up(now));
    take(core.standby_ready(now));
  }
  void to_protecting() {
    to_syncing();
    commit(1);
    ack(1);
  }
  void lose() { take(core.link_lost(broken(), now)); }
  void stop() { take(core.epochs_stopped(now)); }
};

TEST(PrimaryCore, GoesThroughSyncToProtectingAndReleasesWhatIsAcknowledged) {
  Bench bench;
  EXPECT_EQ(bench.core.state(), State::connecting);
  bench.to_syncing();
  EXPECT_EQ(bench.count(Kind::start_epochs), 1u);
  EXPECT_EQ(bench.core.state(), State::syncing);
  bench.commit(1);
  EXPECT_EQ(bench.count(Kind::release_through), 0u);
  bench.ack(1);
  EXPECT_EQ(bench.core.state(), State::protecting);
  EXPECT_EQ(bench.core.released_epoch(), 1u);
}

TEST(PrimaryCore, ABackupThatLivesAndAcknowledgesNothingIsLost) {
  // FAULTS.md 9, 11: a flipped bit in a frame's length keeps the backup waiting for bytes that never end.
  Bench bench;
  bench.to_protecting();
  const auto ticks = [&](Duration time) {
    for (Duration past{}; past < time; past += milliseconds(20)) {
      bench.now += milliseconds(20);
      bench.core.heard(bench.now);
      bench.take(bench.core.tick(bench.now));
    }
  };
  ticks(seconds(30));  // Nothing is waited for.
  EXPECT_EQ(bench.core.state(), State::protecting);
  bench.commit(2);
  ticks(seconds(6));
  bench.ack(2);
  bench.commit(3);
  bench.now += seconds(60);  // A stall of ours is not the backup's.
  ticks(seconds(6));
  EXPECT_EQ(bench.core.state(), State::protecting);
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 0u);
  ticks(seconds(5));
  EXPECT_EQ(bench.core.state(), State::deciding);
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  EXPECT_EQ(bench.count(Kind::close_link), 1u);
}

TEST(PrimaryCore, ADuplicateAckIsHarmlessAndAMissingOneIsCoveredByTheNext) {
  Bench bench;
  bench.to_protecting();
  for (uint64_t epoch = 2; epoch <= 4; ++epoch) bench.commit(epoch);
  bench.ack(1);
  EXPECT_EQ(bench.core.released_epoch(), 1u);
  bench.ack(3);
  bench.ack(2);
  bench.ack(3);
  EXPECT_EQ(bench.core.released_epoch(), 3u);
  EXPECT_EQ(bench.count(Kind::release_through), 2u);
  EXPECT_EQ(bench.core.state(), State::protecting);
}

TEST(PrimaryCore, AnAckThatCannotBeTrustedEndsTheSessionAndReleasesNothing) {
  struct {
    const char* what;
    uint64_t generation, epoch, digest;
  } const cases[] = {
      {"older session", kGeneration - 1, 2, digest(2)}, {"newer session", kGeneration + 1, 2, digest(2)},
      {"never sent", kGeneration, 3, digest(3)},        {"epoch 0", kGeneration, 0, digest(0)},
      {"wrong digest", kGeneration, 2, digest(2) + 1},  {"duplicate, wrong digest", kGeneration, 1, 0},
  };
  for (const auto& bad : cases) {
    Bench bench;
    bench.to_protecting();
    bench.commit(2);
    bench.take(bench.core.acked(bad.generation, bad.epoch, bad.digest, bench.now));
    EXPECT_EQ(bench.core.released_epoch(), 1u) << bad.what;
    EXPECT_EQ(bench.count(Kind::close_link), 1u) << bad.what;
    EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u) << bad.what;
    EXPECT_EQ(bench.core.end().code(), Code::corrupt) << bad.what;
    bench.ack(2);
    EXPECT_EQ(bench.core.released_epoch(), 1u) << bad.what;
  }
}

TEST(PrimaryCore, BeforeTheFirstCommitItGoesOnWithoutAsking) {
  for (int when = 0; when < 4; ++when) {
    Bench bench;
    if (when >= 1) bench.take(bench.core.link_up(bench.now));
    if (when >= 2) bench.take(bench.core.standby_ready(bench.now));
    if (when >= 3) bench.seal(1);
    bench.lose();
    if (when >= 2) {
      EXPECT_EQ(bench.count(Kind::pass_output), 0u) << "the epoch thread may be about to hold";
      EXPECT_FALSE(bench.core.may_send()) << "no COMMIT may follow";
      bench.stop();
    }
    EXPECT_EQ(bench.core.state(), State::unprotected) << when;
    EXPECT_EQ(bench.count(Kind::pass_output), 1u) << when;
    EXPECT_EQ(bench.count(Kind::ask_arbiter), 0u) << when;
  }
}

TEST(PrimaryCore, ARefusalIsToldAsItStands) {
  Bench bench;
  bench.take(bench.core.link_up(bench.now));
  bench.take(bench.core.refused(Status(Code::unsafe, "cpu feature avx2 differs"), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_EQ(bench.core.end().code(), Code::unsafe);
  EXPECT_EQ(bench.core.end().message(), "cpu feature avx2 differs");
}

TEST(PrimaryCore, AfterTheFirstCommitOutputPassesOnlyOnceTheRightIsWonAndEpochsStopped) {
  Bench bench;
  bench.to_syncing();
  bench.commit(1);  // Queued, not acknowledged: the backup may have it.
  bench.lose();
  EXPECT_EQ(bench.core.state(), State::deciding);
  EXPECT_EQ(bench.count(Kind::stop_epochs), 1u);
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.count(Kind::pass_output), 0u);
  bench.stop();
  EXPECT_EQ(bench.count(Kind::pass_output), 1u);
  EXPECT_EQ(bench.core.state(), State::unprotected);
}

TEST(PrimaryCore, TheLoserIsFencedAtOnce) {
  Bench bench;
  bench.to_protecting();
  bench.lose();
  bench.take(bench.core.arbiter(lost(), bench.now));
  EXPECT_EQ(bench.core.state(), State::fenced);
  EXPECT_EQ(bench.count(Kind::fence), 1u);
  bench.stop();
  EXPECT_EQ(bench.count(Kind::pass_output), 0u);
}

TEST(PrimaryCore, AnUnknownAnswerFreezesAndIsAskedAgainUntilItIsKnown) {
  Bench bench;
  bench.to_protecting();
  bench.lose();
  bench.stop();
  for (size_t round = 1; round <= 10; ++round) {
    EXPECT_EQ(bench.count(Kind::ask_arbiter), round);
    bench.take(bench.core.arbiter(unknown(), bench.now));
    EXPECT_EQ(bench.core.state(), State::frozen);
    bench.take(bench.core.tick(bench.now + milliseconds(99)));
    EXPECT_EQ(bench.count(Kind::ask_arbiter), round) << "not before the pause is over";
    bench.now += seconds(5);
    bench.take(bench.core.tick(bench.now));
  }
  EXPECT_EQ(bench.count(Kind::pass_output), 0u);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
}

TEST(PrimaryCore, ALostAnswerThatShowsOurOwnNonceIsAWin) {
  Bench bench;
  bench.to_protecting();
  bench.lose();
  bench.stop();
  bench.take(bench.core.arbiter(lost(kGeneration + 1, "ours"), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
}

TEST(PrimaryCore, ARecordLostOrRolledBackFreezesRatherThanDestroysTheLastCopy) {
  for (uint64_t generation : {uint64_t{0}, kGeneration - 1, kGeneration}) {
    Bench bench;
    bench.to_protecting();
    bench.lose();
    arbiter::Answer answer = lost(generation);
    if (generation == 0) answer.current.reset();
    bench.take(bench.core.arbiter(answer, bench.now));
    EXPECT_EQ(bench.core.state(), State::frozen);
    EXPECT_EQ(bench.count(Kind::fence), 0u);
    EXPECT_FALSE(bench.core.note().empty());
  }
}

TEST(PrimaryCore, SilenceIsALossOfContact) {
  Bench bench;
  bench.to_protecting();
  for (int i = 0; i < 4; ++i) bench.take(bench.core.tick(bench.now += milliseconds(20)));
  EXPECT_EQ(bench.core.state(), State::protecting);
  bench.take(bench.core.tick(bench.now += milliseconds(20)));
  EXPECT_EQ(bench.core.state(), State::deciding);
  EXPECT_EQ(bench.count(Kind::close_link), 1u);
}

TEST(PrimaryCore, AHandshakeThatDoesNotEndIsGivenUp) {
  Bench bench;
  bench.take(bench.core.link_up(bench.now));
  bench.take(bench.core.tick(bench.now + seconds(59)));
  EXPECT_EQ(bench.core.state(), State::connecting);
  bench.take(bench.core.tick(bench.now + seconds(61)));
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_EQ(bench.core.end().code(), Code::timed_out);
}

TEST(PrimaryCore, AnOrderlyUnprotectAsksFirstThenSaysGoodbye) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.unprotect("operator", bench.now));
  EXPECT_EQ(bench.count(Kind::send_goodbye), 0u);
  EXPECT_EQ(bench.count(Kind::close_link), 0u) << "heartbeats go on";
  EXPECT_FALSE(bench.core.may_send());
  bench.stop();
  EXPECT_EQ(bench.count(Kind::pass_output), 0u);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_TRUE(bench.core.end().ok());
  EXPECT_LT(bench.at(Kind::ask_arbiter), bench.at(Kind::send_goodbye));
  EXPECT_LT(bench.at(Kind::send_goodbye), bench.at(Kind::close_link));
}

TEST(PrimaryCore, ALinkThatBreaksDuringAnOrderlyEndChangesNothing) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.unprotect("operator", bench.now));
  bench.lose();
  bench.stop();
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  bench.take(bench.core.arbiter(lost(), bench.now));
  EXPECT_EQ(bench.core.state(), State::fenced);
}

TEST(PrimaryCore, AnOrderedFailoverIsSentAfterEverythingSealedAndGivesTheBackupAHeadStart) {
  Bench bench;
  bench.to_protecting();
  bench.seal(2);
  bench.take(bench.core.order_failover(bench.now));
  EXPECT_EQ(bench.count(Kind::stop_epochs), 1u);
  bench.seal(3);
  bench.stop();
  EXPECT_EQ(bench.count(Kind::send_order_failover), 0u);
  bench.take(bench.core.sent(2, digest(2)));
  EXPECT_EQ(bench.count(Kind::send_order_failover), 0u);
  bench.take(bench.core.sent(3, digest(3)));
  EXPECT_EQ(bench.count(Kind::send_order_failover), 1u);
  bench.ack(3);
  EXPECT_EQ(bench.core.released_epoch(), 3u) << "what it acknowledged it will not forget";
  bench.lose();
  bench.take(bench.core.tick(bench.now + milliseconds(499)));
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 0u);
  bench.take(bench.core.tick(bench.now + milliseconds(500)));
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  bench.take(bench.core.arbiter(lost(), bench.now));
  EXPECT_EQ(bench.core.state(), State::fenced);
  EXPECT_TRUE(bench.core.end().ok()) << bench.core.end().message();
}

TEST(PrimaryCore, AnOrderThatTheBackupRefusesLeavesUsUnprotectedAndSaysSo) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.order_failover(bench.now));
  bench.stop();
  bench.take(bench.core.refused(Status(Code::unsafe, "cannot"), bench.now));
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_NE(bench.core.end().message().find("failover did not take place"), std::string::npos);
}

TEST(PrimaryCore, AnOrderThatIsIgnoredIsNotWaitedForForEver) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.order_failover(bench.now));
  bench.stop();
  const Time end = bench.now + seconds(11);
  while (bench.now < end) {
    bench.core.heard(bench.now);
    bench.take(bench.core.tick(bench.now += milliseconds(20)));
  }
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
}

TEST(PrimaryCore, AFailoverDuringFirstSyncIsRefused) {
  Bench bench;
  bench.to_syncing();
  bench.commit(1);
  bench.take(bench.core.order_failover(bench.now));
  EXPECT_EQ(bench.core.state(), State::syncing);
  EXPECT_FALSE(bench.core.note().empty());
}

TEST(PrimaryCore, AGuestThatExitedEndsAsFailedAfterTheRightIsWon) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.guest_gone(Status(Code::unavailable, "the guest exited"), bench.now));
  bench.stop();
  EXPECT_EQ(bench.core.state(), State::deciding);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.core.state(), State::failed);
  EXPECT_EQ(bench.count(Kind::send_goodbye), 1u);
}

/// Drives the core with events in random order, as a correct shell and a hostile peer could, and checks from
/// outside what must hold whatever happens.
class Chaos {
 public:
  explicit Chaos(uint64_t seed) : random_(seed) {}

  void run() {
    if (random_() % 8 != 0) {
      take(core_.link_up(now_));
      take(core_.standby_ready(now_));
    }
    const uint64_t steps = 5 + random_() % 100;
    for (uint64_t step = 0; step < steps; ++step) {
      now_ += milliseconds(random_() % 30);
      if (random_() % 200 == 0) now_ += seconds(random_() % 20);
      one();
      check();
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  State state() const { return core_.state(); }
  uint64_t released() const { return released_; }

 private:
  void one() {
    switch (random_() % 16) {
      case 0:
        return take(core_.link_up(now_));
      case 1:
        return take(core_.standby_ready(now_));
      case 2:
      case 3:
      case 4:
        if (running_ && sealed_ - core_.acked_epoch() < kMaxInFlight) {
          if (sealed_ == 0) core_.holding();
          core_.sealed(++sealed_);
        }
        return;
      case 5:
      case 6:
      case 7:
        if (core_.may_send() && sent_ < sealed_) {
          ++sent_;
          take(core_.sent(sent_, digest(sent_)));
        }
        return;
      case 8:
      case 9:
      case 10: {
        if (sent_ == 0 && random_() % 64 != 0) return;
        // Mostly a good ack, now and then one of every bad kind.
        const uint64_t epoch = random_() % 64 == 0 ? random_() % (sent_ + 3) : std::max<uint64_t>(sent_, 1);
        const bool good = random_() % 128 != 0;
        const uint64_t generation = random_() % 128 == 0 ? kGeneration - 1 : kGeneration;
        const bool valid = good && generation == kGeneration && epoch >= 1 && epoch <= sent_;
        const uint64_t before = core_.released_epoch();
        take(core_.acked(generation, epoch, digest(epoch) + (good ? 0 : 1), now_));
        ASSERT_TRUE(valid || core_.released_epoch() == before) << "a bad ack released output";
        return;
      }
      case 11:
        core_.heard(now_);
        return take(core_.tick(now_));
      case 12:
        if (stop_asked_ && running_) {
          running_ = false;
          take(core_.epochs_stopped(now_));
        }
        return;
      case 13:
      case 14:
        if (asking_) {
          asking_ = false;
          answer();
        }
        return;
      default:
        if (random_() % 3 == 0) rare();
        return;
    }
  }

  void answer() {
    switch (random_() % 4) {
      case 0:
        won_ = true;
        return take(core_.arbiter(random_() % 2 == 0 ? won() : lost(kGeneration + 1, "ours"), now_));
      case 1:
        lost_ = true;
        return take(core_.arbiter(lost(), now_));
      case 2:
        return take(core_.arbiter(lost(kGeneration), now_));
      default:
        return take(core_.arbiter(unknown(), now_));
    }
  }

  void rare() {
    switch (random_() % 12) {
      case 0:
        return take(core_.link_lost(broken(), now_));
      case 1:
        return take(core_.refused(broken(), now_));
      case 2:
        return take(core_.unprotect("operator", now_));
      case 3:
        return take(core_.order_failover(now_));
      case 4:
        if (running_) take(core_.guest_gone(broken(), now_));
        return;
      case 5:
        if (running_) take(core_.guest_error(broken(), now_));
        return;
      default:
        return take(core_.tick(now_));
    }
  }

  void take(const Actions& actions) {
    for (const Action& action : actions) {
      switch (action.kind) {
        case Kind::start_epochs:
          ASSERT_FALSE(running_);
          running_ = true;
          break;
        case Kind::stop_epochs:
          stop_asked_ = true;
          break;
        case Kind::release_through:
          ASSERT_FALSE(passed_ || fenced_);
          ASSERT_GT(action.number, released_);
          released_ = action.number;
          break;
        case Kind::ask_arbiter:
          ASSERT_FALSE(asking_) << "one question at a time";
          ASSERT_FALSE(won_ || lost_) << "an answer was known";
          ASSERT_GT(sent_, 0u) << "asked without need";
          ASSERT_EQ(action.number, kGeneration);
          asking_ = true;
          break;
        case Kind::pass_output:
          ASSERT_FALSE(passed_ || fenced_);
          ASSERT_TRUE(won_ || sent_ == 0) << "output passed without the right";
          ASSERT_FALSE(running_) << "an epoch thread could hold again";
          passed_ = true;
          break;
        case Kind::fence:
          ASSERT_FALSE(passed_ || fenced_);
          ASSERT_TRUE(lost_);
          fenced_ = true;
          break;
        case Kind::send_order_failover:
          ASSERT_EQ(sent_, sealed_);
          break;
        case Kind::send_goodbye:
          ASSERT_TRUE(won_ || sent_ == 0) << "goodbye before the right was won";
          break;
        case Kind::close_link:
        case Kind::report:
          break;
      }
    }
  }

  void check() {
    ASSERT_LE(core_.released_epoch(), core_.acked_epoch());
    ASSERT_LE(core_.acked_epoch(), core_.sent_epoch());
    ASSERT_LE(core_.sent_epoch(), core_.sealed_epoch());
    ASSERT_EQ(core_.released_epoch(), released_);
    if (core_.final()) {
      ASSERT_TRUE(passed_ || fenced_) << "it ended without telling the gate";
      ASSERT_EQ(core_.state() == State::fenced, fenced_);
    }
  }

  std::mt19937_64 random_;
  Core core_{config(), kStart};
  Time now_ = kStart;
  uint64_t sealed_ = 0, sent_ = 0, released_ = 0;
  bool running_ = false, stop_asked_ = false, asking_ = false;
  bool won_ = false, lost_ = false, passed_ = false, fenced_ = false;
};

TEST(PrimaryCoreProperty, InvariantsHoldUnderAnyOrderOfEvents) {
  std::map<State, int> ends;
  int released = 0;
  for (uint64_t seed = 0; seed < 20000; ++seed) {
    Chaos chaos(seed);
    chaos.run();
    ASSERT_FALSE(HasFatalFailure()) << "seed " << seed;
    ++ends[chaos.state()];
    released += chaos.released() > 1;
  }
  // The test is worth something only when it gets everywhere.
  for (State state : {State::connecting, State::syncing, State::protecting, State::deciding, State::frozen,
                      State::unprotected, State::fenced, State::failed}) {
    EXPECT_GT(ends[state], 50) << to_string(state);
  }
  EXPECT_GT(released, 5000);
}

}  // namespace
}  // namespace remusd::primary
