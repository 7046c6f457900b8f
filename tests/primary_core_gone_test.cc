// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The guest's hypervisor ended by itself: the backup shall run the last committed epoch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/primary_core_bench.h"

namespace remusd::primary {
namespace {

const Status kGuestExited(Code::unavailable, "the guest exited");

TEST(PrimaryCore, AGuestThatExitedIsHandedOverAndTheRightIsLeftToTheBackup) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.guest_gone(kGuestExited, bench.now));
  bench.stop();
  EXPECT_EQ(bench.core.state(), State::deciding);
  EXPECT_EQ(bench.count(Kind::send_order), 1u);
  bench.take(bench.core.link_lost(Status(Code::unavailable, "closed"), bench.now));
  EXPECT_EQ(bench.core.state(), State::failed);
  EXPECT_EQ(bench.count(Kind::fence), 1u);
  EXPECT_EQ(bench.count(Kind::ask_arbiter) + bench.count(Kind::pass_output), 0u);
  EXPECT_THAT(bench.core.end().message(), testing::HasSubstr("the guest exited"));
}

TEST(PrimaryCore, ABackupThatDoesNotFollowAHandOverIsNotWaitedForForEver) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.guest_gone(kGuestExited, bench.now));
  bench.stop();
  for (int i = 0; i < 1000 && !bench.core.final(); ++i) {
    bench.now += milliseconds(20);
    bench.core.heard(bench.now);
    bench.take(bench.core.tick(bench.now));
  }
  EXPECT_EQ(bench.core.state(), State::failed);
  EXPECT_EQ(bench.count(Kind::ask_arbiter) + bench.count(Kind::pass_output), 0u);
}

TEST(PrimaryCore, AGuestThatExitsWithoutAnAcknowledgedEpochEndsAtOnce) {
  Bench bench;
  bench.to_syncing();
  bench.commit(1);
  bench.take(bench.core.guest_gone(kGuestExited, bench.now));
  EXPECT_EQ(bench.core.state(), State::failed);
  EXPECT_EQ(bench.count(Kind::ask_arbiter) + bench.count(Kind::pass_output), 0u);
}

TEST(PrimaryCore, AGuestThatExitsWhileTheArbiterIsAskedFollowsTheAnswer) {
  for (const bool answered : {true, false}) {
    Bench bench;
    bench.to_protecting();
    bench.take(bench.core.link_lost(Status(Code::unavailable, "closed"), bench.now));
    ASSERT_EQ(bench.count(Kind::ask_arbiter), 1u);
    bench.take(bench.core.guest_gone(kGuestExited, bench.now));
    bench.stop();
    bench.take(bench.core.arbiter(answered ? won() : arbiter::Answer{}, bench.now));
    EXPECT_EQ(bench.core.state(), State::failed);
    EXPECT_EQ(bench.count(Kind::ask_arbiter), 1u) << "never asked again";
    EXPECT_EQ(bench.count(Kind::pass_output), answered ? 1u : 0u);
    EXPECT_EQ(bench.count(Kind::fence), answered ? 0u : 1u);
  }
}

TEST(PrimaryCore, AGuestThatExitsDuringAnOrderedFailoverIsStillHandedOver) {
  Bench bench;
  bench.to_protecting();
  bench.take(bench.core.order_failover(bench.now));
  bench.take(bench.core.guest_gone(kGuestExited, bench.now));
  bench.stop();
  EXPECT_EQ(bench.count(Kind::send_order), 1u);
  bench.take(bench.core.link_lost(Status(Code::unavailable, "closed"), bench.now));
  EXPECT_EQ(bench.core.state(), State::failed);
  EXPECT_EQ(bench.count(Kind::ask_arbiter), 0u);
}

}  // namespace
}  // namespace remusd::primary
