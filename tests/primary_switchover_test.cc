// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The primary's core: the guest is handed over, or an operator's word counts for the arbiter's.
#include <gtest/gtest.h>

#include "tests/primary_core_bench.h"

namespace remusd::primary {
namespace {

/// As far as the guest's standing here, with ORDER queued.
void hand_over(Bench* bench) {
  bench->to_protecting();
  bench->take(bench->core.order_switchover(bench->now));
  EXPECT_EQ(bench->count(Kind::last_epoch), 1u);
  EXPECT_EQ(bench->count(Kind::stop_epochs), 0u) << "the epoch thread ends by itself, after one more";
  bench->commit(2);
  EXPECT_EQ(bench->count(Kind::send_order), 0u) << "the guest may still run";
  bench->stop();
  EXPECT_EQ(bench->count(Kind::send_order), 1u);
}

TEST(PrimarySwitchover, TheLastEpochIsCommittedBeforeTheOrderAndWhatItSaidIsHeard) {
  Bench bench;
  bench.to_protecting();
  EXPECT_FALSE(bench.core.may_forward());
  bench = Bench{};
  hand_over(&bench);
  EXPECT_TRUE(bench.core.may_forward());
  bench.ack(2);
  EXPECT_EQ(bench.core.released_epoch(), 2u);
  bench.take(bench.core.refused(Status(Code::unavailable, "it runs there"), bench.now));
  EXPECT_FALSE(bench.core.may_forward());
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u) << "it said so: no head start is needed";
  bench.take(bench.core.arbiter(lost(), bench.now));
  EXPECT_EQ(bench.core.state(), State::fenced);
  EXPECT_TRUE(bench.core.end().ok()) << bench.core.end().message();
  EXPECT_EQ(bench.count(Kind::let_run), 0u);
}

TEST(PrimarySwitchover, ABackupThatDoesNotTakeOverGivesTheGuestBack) {
  Bench bench;
  hand_over(&bench);
  bench.now += milliseconds(1999);
  bench.core.heard(bench.now);
  bench.take(bench.core.tick(bench.now));
  EXPECT_EQ(bench.count(Kind::close_link), 0u);
  bench.now += milliseconds(1);
  bench.take(bench.core.tick(bench.now));
  EXPECT_EQ(bench.count(Kind::close_link), 1u);
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 0u) << "the backup may be about to win";
  bench.now += milliseconds(500);
  bench.take(bench.core.tick(bench.now));
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_EQ(bench.count(Kind::let_run), 1u);
  EXPECT_LT(bench.at(Kind::let_run), bench.at(Kind::pass_output));
}

TEST(PrimarySwitchover, AGuestThatCouldNotBeMadeToStandIsNotHandedOver) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.order_switchover(bench.now));
  bench.take(bench.core.guest_error(Status(Code::io, "QMP: no answer"), bench.now));
  bench.stop();
  EXPECT_EQ(bench.count(Kind::send_order), 0u);
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u);
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_EQ(bench.core.end().code(), Code::io);
}

TEST(PrimarySwitchover, ALinkThatBreaksDuringTheLastEpochGivesTheGuestBackWhenTheRightIsWon) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.order_switchover(bench.now));
  bench.lose();
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u) << "the backup never heard the order";
  bench.take(bench.core.arbiter(won(), bench.now));
  EXPECT_EQ(bench.count(Kind::pass_output), 0u) << "epochs still stop";
  bench.seal(2);
  bench.stop();
  EXPECT_EQ(bench.count(Kind::let_run), 1u);
  EXPECT_EQ(bench.core.state(), State::unprotected);
}

TEST(PrimarySwitchover, OnlyAWholePairSwitches) {
  Bench bench;
  bench.to_syncing();
  bench.take(bench.core.order_switchover(bench.now));
  EXPECT_EQ(bench.count(Kind::last_epoch), 0u);
  EXPECT_NE(bench.core.note().find("refused"), std::string::npos);
  bench.commit(1);
  bench.ack(1);
  bench.take(bench.core.order_failover(bench.now));
  bench.take(bench.core.order_switchover(bench.now));
  EXPECT_EQ(bench.count(Kind::last_epoch), 0u) << "one order at a time";
}

TEST(PrimaryForce, AnOperatorsWordCountsWhileTheArbiterIsSilent) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.force());
  EXPECT_EQ(bench.core.state(), State::protecting) << "nothing is being decided";
  bench.lose();
  bench.stop();
  bench.take(bench.core.arbiter(unknown(), bench.now));
  EXPECT_EQ(bench.core.state(), State::frozen);
  bench.take(bench.core.force());
  EXPECT_EQ(bench.core.state(), State::unprotected);
  EXPECT_TRUE(bench.core.forced());
  EXPECT_EQ(bench.count(Kind::pass_output), 1u);
  EXPECT_NE(bench.core.end().message().find("operator"), std::string::npos);
}

TEST(PrimaryForce, AnAnswerThatComesBeforeOutputPassedStillCounts) {
  Bench bench;
  bench.to_protecting();
  bench.lose();
  bench.take(bench.core.force());
  EXPECT_EQ(bench.count(Kind::pass_output), 0u) << "epochs still stop";
  bench.take(bench.core.arbiter(lost(), bench.now));
  EXPECT_EQ(bench.core.state(), State::fenced);
}

}  // namespace
}  // namespace remusd::primary
