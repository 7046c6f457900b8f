// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "tests/primary_core_bench.h"

namespace remusd::primary {
namespace {

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
  EXPECT_EQ(bench.count(Kind::send_order), 0u);
  bench.take(bench.core.sent(2, digest(2)));
  EXPECT_EQ(bench.count(Kind::send_order), 0u);
  bench.take(bench.core.sent(3, digest(3)));
  EXPECT_EQ(bench.count(Kind::send_order), 1u);
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

}  // namespace
}  // namespace remusd::primary
