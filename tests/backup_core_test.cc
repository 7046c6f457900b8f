// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The backup's decisions: FAULTS.md 3, 6, 7, 8, 17, 18, 20, 21, 22, 25, 39, 41.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "backup/core.h"

namespace remusd::backup {
namespace {

using arbiter::Verdict;
using std::chrono::milliseconds;

constexpr uint64_t kGeneration = 7;
const std::string kNonce = "our-nonce";
constexpr Duration kHeadStart = milliseconds(40);

class Machine {
 public:
  explicit Machine(bool fence = false) : core(CoreConfig{.nonce = kNonce, .fence = fence}) {}

  Machine& ready() {
    core.admitted(kGeneration);
    core.standby_ready(now, &actions);
    return *this;
  }
  Machine& epochs(uint64_t through) {
    for (uint64_t epoch = core.acked() + 1; epoch <= through; ++epoch) {
      core.heard(now);
      core.epoch_staged(epoch, true, &actions);
      if (epoch > 1) core.applied(epoch, &actions);
    }
    return *this;
  }
  Machine& lose() {
    core.link_lost(Status(Code::unavailable, "cut"), &actions);
    sleep(kHeadStart);
    return *this;
  }
  void answer(Verdict verdict, std::optional<arbiter::Record> current = std::nullopt) {
    core.arbiter_answered({verdict, std::move(current), {}}, now, &actions);
  }
  void sleep(Duration duration) {
    for (const Time until = now + duration; now < until;) {
      now += milliseconds(5);
      core.tick(now, &actions);
    }
  }
  size_t count(ActionKind kind) const {
    return static_cast<size_t>(std::count_if(actions.begin(), actions.end(),
                                             [&](const Action& action) { return action.kind == kind; }));
  }
  bool has(ActionKind kind) const { return count(kind) > 0; }

  Core core;
  Actions actions;
  Time now{std::chrono::hours(1)};
};

arbiter::Record record(uint64_t generation, const std::string& nonce) {
  return {.generation = generation, .owner = "a", .boot_id = "", .epoch = 0, .nonce = nonce, .peer = ""};
}

TEST(BackupCore, APrimaryWhoseConnectionBrokeHasAHeadStartAtTheArbiter) {
  Machine machine;
  machine.ready().epochs(3);
  machine.core.link_lost(Status(Code::unavailable, "cut"), &machine.actions);
  EXPECT_TRUE(machine.core.acking_stopped()) << "the latch does not wait";
  machine.core.epoch_staged(4, true, &machine.actions);
  EXPECT_EQ(machine.core.acked(), 3u);
  machine.sleep(kHeadStart - milliseconds(5));
  EXPECT_FALSE(machine.has(ActionKind::ask_arbiter));
  machine.sleep(milliseconds(5));
  EXPECT_EQ(machine.count(ActionKind::ask_arbiter), 1u);
}

TEST(BackupCore, AcksAndAppliesEpochsInOrder) {
  Machine machine;
  machine.ready();
  EXPECT_EQ(machine.core.state(), State::syncing);
  machine.core.epoch_staged(1, true, &machine.actions);
  EXPECT_EQ(machine.core.state(), State::standby);
  EXPECT_EQ(machine.core.applied(), 1u) << "the first epoch is in the image when it is acknowledged";
  machine.core.epoch_staged(2, true, &machine.actions);
  machine.core.epoch_staged(3, true, &machine.actions);
  machine.core.applied(2, &machine.actions);
  EXPECT_EQ(machine.core.acked(), 3u);
  EXPECT_EQ(machine.core.applied(), 2u);
  EXPECT_EQ(machine.count(ActionKind::ack), 3u);
  EXPECT_FALSE(machine.has(ActionKind::ask_arbiter));
}

TEST(BackupCore, LossBeforeTheFirstCommittedEpochNeverPromotes) {
  for (const bool ready : {false, true}) {
    Machine machine;
    if (ready) machine.ready();
    machine.lose();
    EXPECT_EQ(machine.core.state(), State::failed);
    EXPECT_TRUE(machine.has(ActionKind::destroy_standby));
    EXPECT_FALSE(machine.has(ActionKind::ask_arbiter));
    EXPECT_FALSE(machine.has(ActionKind::promote));
  }
}

TEST(BackupCore, FailoverDuringFirstSyncIsRefused) {
  Machine machine;
  machine.ready();
  EXPECT_EQ(machine.core.order_failover("an operator", false, &machine.actions).code(), Code::unsafe);
  EXPECT_EQ(machine.core.state(), State::syncing);
  EXPECT_FALSE(machine.core.acking_stopped());
}

TEST(BackupCore, SilenceIsLossAndStopsAcknowledging) {
  Machine machine;
  machine.ready().epochs(3);
  machine.sleep(milliseconds(90));
  EXPECT_EQ(machine.core.state(), State::standby);
  machine.core.heard(machine.now);
  machine.sleep(milliseconds(90));
  EXPECT_EQ(machine.core.state(), State::standby);
  machine.sleep(milliseconds(40));
  EXPECT_EQ(machine.core.state(), State::deciding);
  EXPECT_TRUE(machine.has(ActionKind::close_link));
  const size_t acks = machine.count(ActionKind::ack);
  machine.core.heard(machine.now);
  machine.core.epoch_staged(4, true, &machine.actions);
  EXPECT_EQ(machine.count(ActionKind::ack), acks) << "an epoch that comes after the loss is not acknowledged";
  EXPECT_EQ(machine.core.data(4), Core::Take::drop);
}

TEST(BackupCore, AStallOfOursIsNoLossOfTheirs) {
  Machine machine;
  machine.ready().epochs(1);
  machine.now += std::chrono::seconds(60);
  machine.core.tick(machine.now, &machine.actions);
  EXPECT_EQ(machine.core.state(), State::standby);
}

TEST(BackupCore, WonPromotesOnlyWhenAllThatWasAckedIsApplied) {
  Machine machine;
  machine.ready().epochs(2);
  machine.core.epoch_staged(3, true, &machine.actions);
  machine.core.epoch_staged(4, true, &machine.actions);
  machine.lose();
  machine.answer(Verdict::won);
  EXPECT_EQ(machine.core.state(), State::promoting);
  EXPECT_FALSE(machine.has(ActionKind::promote));
  machine.core.applied(3, &machine.actions);
  EXPECT_FALSE(machine.has(ActionKind::promote));
  machine.core.applied(4, &machine.actions);
  EXPECT_EQ(machine.count(ActionKind::promote), 1u);
  machine.core.promotion_done({}, &machine.actions);
  EXPECT_EQ(machine.core.state(), State::promoted);
  EXPECT_EQ(machine.core.order_failover("an operator", false, &machine.actions).code(), Code::exists);
}

TEST(BackupCore, LostDestroysTheStandby) {
  Machine machine;
  machine.ready().epochs(2).lose();
  machine.answer(Verdict::lost, record(kGeneration + 1, "theirs"));
  EXPECT_EQ(machine.core.state(), State::ended);
  EXPECT_TRUE(machine.has(ActionKind::destroy_standby));
  EXPECT_FALSE(machine.has(ActionKind::promote));
}

TEST(BackupCore, UnknownFreezesAndAsksForever) {
  Machine machine;
  machine.ready().epochs(2).lose();
  size_t asked = machine.count(ActionKind::ask_arbiter);
  EXPECT_EQ(asked, 1u);
  for (int i = 0; i < 40; ++i) {
    machine.answer(Verdict::unknown);
    EXPECT_EQ(machine.core.state(), State::frozen);
    EXPECT_FALSE(machine.has(ActionKind::promote));
    EXPECT_FALSE(machine.has(ActionKind::destroy_standby));
    machine.sleep(std::chrono::seconds(3));
    EXPECT_EQ(machine.count(ActionKind::ask_arbiter), ++asked) << "one question at a time";
  }
  machine.answer(Verdict::won);
  EXPECT_TRUE(machine.has(ActionKind::promote));
}

TEST(BackupCore, LosingToOurOwnEarlierRequestIsWinning) {
  Machine machine;
  machine.ready().epochs(2).lose();
  machine.answer(Verdict::unknown);
  machine.sleep(std::chrono::seconds(1));
  machine.answer(Verdict::lost, record(kGeneration + 1, kNonce));
  EXPECT_EQ(machine.core.state(), State::promoting);
}

TEST(BackupCore, ARecordThatIsMissingOrRolledBackNamesNoWinner) {
  for (const auto& current :
       {std::optional<arbiter::Record>(), std::optional(record(kGeneration - 1, "x"))}) {
    Machine machine;
    machine.ready().epochs(2).lose();
    machine.answer(Verdict::lost, current);
    EXPECT_EQ(machine.core.state(), State::frozen);
    EXPECT_FALSE(machine.has(ActionKind::destroy_standby));
  }
}

TEST(BackupCore, OrderedFailoverKeepsTheLinkUntilTheRightIsWon) {
  Machine machine;
  machine.ready().epochs(2);
  ASSERT_TRUE(machine.core.order_failover("an operator", false, &machine.actions).ok());
  EXPECT_TRUE(machine.core.acking_stopped());
  EXPECT_FALSE(machine.has(ActionKind::close_link));
  EXPECT_TRUE(machine.core.order_failover("the other side", false, &machine.actions).ok())
      << "twice is harmless";
  EXPECT_EQ(machine.count(ActionKind::ask_arbiter), 1u);
  machine.answer(Verdict::won);
  EXPECT_TRUE(machine.has(ActionKind::close_link));
  EXPECT_TRUE(machine.has(ActionKind::promote));
}

TEST(BackupCore, GoodbyeEndsInOrderButNotWhileDeciding) {
  Machine machine;
  machine.ready().epochs(2);
  machine.core.goodbye("unprotect", &machine.actions);
  EXPECT_EQ(machine.core.state(), State::ended);
  EXPECT_TRUE(machine.has(ActionKind::destroy_standby));
  EXPECT_FALSE(machine.has(ActionKind::ask_arbiter));

  Machine deciding;
  deciding.ready().epochs(2).lose();
  deciding.core.goodbye("unprotect", &deciding.actions);
  EXPECT_EQ(deciding.core.state(), State::deciding);
}

TEST(BackupCore, EpochsThatDoNotRiseByOneOrAreWrongAreLoss) {
  for (const uint64_t epoch : {uint64_t{0}, uint64_t{2}, uint64_t{3}, uint64_t{5}}) {
    Machine machine;
    machine.ready().epochs(3);
    const size_t acks = machine.count(ActionKind::ack);
    machine.core.epoch_staged(epoch, true, &machine.actions);
    EXPECT_EQ(machine.core.state(), State::deciding) << epoch;
    EXPECT_EQ(machine.count(ActionKind::ack), acks);
  }
  Machine machine;
  machine.ready().epochs(3);
  machine.core.epoch_staged(4, false, &machine.actions);
  EXPECT_EQ(machine.core.state(), State::deciding);
  EXPECT_EQ(machine.core.acked(), 3u);
}

TEST(BackupCore, APromotionThatFailsIsTold) {
  Machine machine;
  machine.ready().epochs(2).lose();
  machine.answer(Verdict::won);
  machine.core.promotion_done(Status(Code::io, "no such luck"), &machine.actions);
  EXPECT_EQ(machine.core.state(), State::failed);
  EXPECT_NE(machine.core.why().message().find("no such luck"), std::string::npos);
  EXPECT_TRUE(machine.has(ActionKind::destroy_standby));
}

TEST(BackupCore, ASwitchoverKeepsTheLinkUntilTheGuestRunsHereAndNeedsNoFencing) {
  Machine machine(/*fence=*/true);
  machine.ready().epochs(2);
  ASSERT_TRUE(machine.core.order_failover("the primary", true, &machine.actions).ok());
  machine.core.loaded(Status(), &machine.actions);
  machine.answer(Verdict::won);
  EXPECT_FALSE(machine.has(ActionKind::close_link));
  EXPECT_FALSE(machine.has(ActionKind::fence_peer)) << "who hands over in order is alive and lets it stand";
  EXPECT_TRUE(machine.has(ActionKind::promote));
}

TEST(BackupCore, InASwitchoverItIsLoadedOnceAppliedAndBeforeTheRightToRunIsAskedFor) {
  Machine machine;
  machine.ready().epochs(2);
  machine.core.epoch_staged(3, true, &machine.actions);
  ASSERT_TRUE(machine.core.order_failover("the primary", true, &machine.actions).ok());
  EXPECT_EQ(machine.core.state(), State::loading);
  EXPECT_FALSE(machine.has(ActionKind::load)) << "epoch 3 is not applied";
  machine.core.applied(3, &machine.actions);
  EXPECT_EQ(machine.count(ActionKind::load), 1u);
  machine.core.link_lost(Status(Code::unavailable, "cut"), &machine.actions);
  machine.sleep(2 * kHeadStart);
  EXPECT_FALSE(machine.has(ActionKind::ask_arbiter)) << "it is not known whether it can be run";
  machine.core.loaded(Status(), &machine.actions);
  EXPECT_EQ(machine.core.state(), State::deciding);
  EXPECT_EQ(machine.count(ActionKind::ask_arbiter), 1u);
  EXPECT_FALSE(machine.has(ActionKind::promote)) << "loaded, it stands";
  machine.answer(Verdict::unknown);
  EXPECT_EQ(machine.core.state(), State::frozen);
  EXPECT_FALSE(machine.has(ActionKind::promote));
  machine.core.tick(machine.core.next_tick(), &machine.actions);
  machine.answer(Verdict::lost, record(kGeneration + 1, "theirs"));
  EXPECT_EQ(machine.core.state(), State::ended);
  EXPECT_TRUE(machine.has(ActionKind::destroy_standby));
  EXPECT_FALSE(machine.has(ActionKind::promote));
}

TEST(BackupCore, WhoCannotLoadAGuestThatStandsNeverAsksForItAndSaysSo) {
  Machine machine;
  machine.ready().epochs(2);
  ASSERT_TRUE(machine.core.order_failover("the primary", true, &machine.actions).ok());
  machine.core.loaded(Status(Code::io, "no such luck"), &machine.actions);
  EXPECT_EQ(machine.core.state(), State::failed);
  EXPECT_NE(machine.core.why().message().find("no such luck"), std::string::npos);
  const auto of = [&](ActionKind kind) {
    return std::find_if(machine.actions.begin(), machine.actions.end(),
                        [&](const Action& action) { return action.kind == kind; });
  };
  ASSERT_TRUE(machine.has(ActionKind::tell_end));
  EXPECT_EQ(of(ActionKind::tell_end)->why.code(), Code::io);
  EXPECT_LT(of(ActionKind::tell_end), of(ActionKind::destroy_standby)) << "the guest stands until it is told";
  EXPECT_LT(of(ActionKind::tell_end), of(ActionKind::close_link));
  machine.sleep(milliseconds(500));
  EXPECT_FALSE(machine.has(ActionKind::ask_arbiter));
  EXPECT_FALSE(machine.has(ActionKind::promote));
}

TEST(BackupCore, AForceWhileItLoadsPromotesOnceItIsLoaded) {
  Machine machine;
  machine.ready().epochs(2);
  ASSERT_TRUE(machine.core.order_failover("the primary", true, &machine.actions).ok());
  EXPECT_TRUE(machine.core.force("an operator", &machine.actions).ok());
  EXPECT_FALSE(machine.has(ActionKind::promote)) << "its hypervisor is busy";
  machine.core.loaded(Status(), &machine.actions);
  EXPECT_EQ(machine.count(ActionKind::promote), 1u);
  EXPECT_FALSE(machine.has(ActionKind::ask_arbiter));
}

TEST(BackupCore, AsksForASwitchoverOnlyAsAWholeStandby) {
  Machine machine;
  EXPECT_EQ(machine.core.order_switchover(&machine.actions).code(), Code::unsafe);
  machine.ready().epochs(2);
  EXPECT_TRUE(machine.core.order_switchover(&machine.actions).ok());
  EXPECT_TRUE(machine.has(ActionKind::ask_switchover));
  machine.lose();
  EXPECT_EQ(machine.core.order_switchover(&machine.actions).code(), Code::unsafe);
}

TEST(BackupCore, PromotesOnlyOnceThePeerIsFenced) {
  Machine machine(/*fence=*/true);
  machine.ready().epochs(2).lose();
  machine.answer(Verdict::won);
  EXPECT_EQ(machine.core.state(), State::fencing);
  for (int failures = 0; failures < 3; ++failures) {
    EXPECT_EQ(machine.count(ActionKind::fence_peer), static_cast<size_t>(failures + 1));
    machine.core.fenced(Status(Code::timed_out, "no answer"), machine.now, &machine.actions);
    EXPECT_EQ(machine.core.state(), State::fencing);
    EXPECT_FALSE(machine.core.fence_note().ok());
    machine.now = machine.core.next_tick();
    machine.core.tick(machine.now, &machine.actions);
  }
  EXPECT_FALSE(machine.has(ActionKind::promote));
  machine.core.fenced(Status(), machine.now, &machine.actions);
  EXPECT_TRUE(machine.has(ActionKind::promote));
  EXPECT_TRUE(machine.core.fence_note().ok());
}

TEST(BackupCore, AnOperatorsForceNeedsACommittedEpochButNoArbiterAndNoFencing) {
  Machine syncing;
  syncing.ready();
  EXPECT_EQ(syncing.core.force("an operator", &syncing.actions).code(), Code::unsafe);

  Machine frozen;
  frozen.ready().epochs(2).lose();
  frozen.answer(Verdict::unknown);
  ASSERT_EQ(frozen.core.state(), State::frozen);
  frozen.core.tick(frozen.core.next_tick(), &frozen.actions);
  EXPECT_TRUE(frozen.core.force("an operator", &frozen.actions).ok());
  EXPECT_TRUE(frozen.core.forced());
  EXPECT_TRUE(frozen.has(ActionKind::promote));
  frozen.answer(Verdict::lost, record(kGeneration + 1, "theirs"));
  EXPECT_EQ(frozen.core.state(), State::promoting) << "too late: the operator has spoken";

  Machine fencing(/*fence=*/true);
  fencing.ready().epochs(2).lose();
  fencing.answer(Verdict::won);
  EXPECT_TRUE(fencing.core.force("an operator", &fencing.actions).ok());
  EXPECT_FALSE(fencing.core.forced()) << "the right to run was won";
  fencing.core.fenced(Status(), fencing.now, &fencing.actions);
  EXPECT_EQ(fencing.count(ActionKind::promote), 1u);

  Machine standby;
  standby.ready().epochs(2);
  EXPECT_TRUE(standby.core.force("an operator", &standby.actions).ok());
  EXPECT_TRUE(standby.core.acking_stopped());
  EXPECT_EQ(standby.count(ActionKind::ask_arbiter), 0u);
  EXPECT_TRUE(standby.has(ActionKind::promote));
}

// Whatever comes in whatever order, the invariants at the head of core.h hold.
TEST(BackupCore, HoldsItsInvariantsUnderRandomEvents) {
  for (uint32_t seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    Machine machine;
    Core& core = machine.core;
    size_t seen = 0, asked = 0, answered = 0;
    bool stopped = false, won = false, promoted = false, loading = false, loaded = false, failed = false;
    uint64_t acked = 0;
    if (random() % 8 != 0) machine.ready();
    for (int step = 0; step < 60; ++step) {
      const bool was_final = core.final();
      const State was = core.state();
      machine.now += milliseconds(random() % 12);
      switch (random() % 15) {
        case 0:
          core.tick(machine.now, &machine.actions);
          break;
        case 1:
          if (random() % 8 == 0) machine.lose();
          break;
        case 2:
          if (random() % 16 == 0) core.goodbye("bye", &machine.actions);
          break;
        case 3:
          if (random() % 8 == 0) (void)core.order_failover("test", random() % 2 == 0, &machine.actions);
          break;
        case 4:
          if (random() % 32 == 0) core.end(Status(Code::ok, "test"), &machine.actions);
          break;
        case 5:
        case 6:
          if (asked > answered) {
            ++answered;
            const auto verdict = static_cast<Verdict>(random() % 3);
            won |= !core.final() && verdict == Verdict::won;
            machine.answer(verdict, record(kGeneration + 1, "theirs"));
          }
          break;
        case 7:
          if (random() % 16 == 0) core.epoch_staged(random() % 6, random() % 2 == 0, &machine.actions);
          break;
        case 8:
        case 9:
          if (!core.final() && core.applied() < core.acked())
            core.applied(core.applied() + 1, &machine.actions);
          break;
        case 10:
          if (loading) {
            loading = false;
            loaded = random() % 4 != 0;
            failed = !loaded;
            core.loaded(loaded ? Status() : Status(Code::io, "test"), &machine.actions);
          }
          break;
        default:
          core.heard(machine.now);
          if (was != State::handshake) core.epoch_staged(core.acked() + 1, true, &machine.actions);
          break;
      }
      for (; seen < machine.actions.size(); ++seen) {
        const Action& action = machine.actions[seen];
        switch (action.kind) {
          case ActionKind::ack:
            ASSERT_FALSE(stopped) << "acknowledged after loss was suspected";
            ASSERT_EQ(action.number, ++acked);
            break;
          case ActionKind::ask_arbiter:
            ASSERT_TRUE(core.acking_stopped());
            ASSERT_GE(core.acked(), 1u);
            ASSERT_EQ(action.number, kGeneration);
            ASSERT_EQ(asked++, answered) << "two questions at a time";
            ASSERT_EQ(loaded, core.planned()) << "a guest that stands is asked for once it is loaded";
            ASSERT_FALSE(failed);
            break;
          case ActionKind::load:
            ASSERT_TRUE(core.planned() && core.acking_stopped());
            ASSERT_FALSE(loading || loaded || failed || won);
            ASSERT_EQ(core.applied(), core.acked());
            loading = true;
            break;
          case ActionKind::promote:
            ASSERT_TRUE(won);
            ASSERT_FALSE(promoted || loading || failed);
            ASSERT_EQ(loaded, core.planned());
            ASSERT_EQ(core.applied(), core.acked());
            promoted = true;
            break;
          case ActionKind::destroy_standby:
            ASSERT_TRUE(core.final());
            break;
          default:
            break;
        }
      }
      stopped |= core.acking_stopped();
      ASSERT_LE(core.applied(), core.acked());
      if (was_final) {
        ASSERT_EQ(core.state(), was) << "a final state was left";
      }
    }
  }
}

}  // namespace
}  // namespace remusd::backup
