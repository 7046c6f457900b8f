// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/primary_core_bench.h"

namespace remusd::primary {
namespace {

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
        return take(random_() % 2 == 0 ? core_.order_failover(now_) : core_.order_switchover(now_));
      case 4:
        gone_ = gone_ || running_;
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
        case Kind::last_epoch:
          ASSERT_TRUE(running_ && !stop_asked_);
          stop_asked_ = true;
          break;
        case Kind::let_run:
          ASSERT_TRUE(core_.planned() && !running_);
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
          ASSERT_FALSE(gone_) << "asked for a guest that is gone";
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
          ASSERT_TRUE(lost_ || (gone_ && sent_ > 0));
          fenced_ = true;
          break;
        case Kind::send_order:
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
      ASSERT_EQ(core_.state() == State::fenced || (core_.state() == State::failed && !passed_), fenced_);
    }
  }

  std::mt19937_64 random_;
  Core core_{config(), kStart};
  Time now_ = kStart;
  uint64_t sealed_ = 0, sent_ = 0, released_ = 0;
  bool gone_ = false, running_ = false, stop_asked_ = false, asking_ = false;
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
