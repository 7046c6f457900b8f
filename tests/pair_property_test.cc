// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Both pure cores, driven by a seeded scheduler under virtual time over a link that delays, goes silent in
// one direction or both, or breaks; with an arbiter that answers late, ambiguously or not at all; with either
// side killed or frozen at any step, and operators who give orders on both. The checkers stand beside the
// cores and judge only what the outside sees: FAULTS.md 1, 2, 3, 8, 17, 18, 20, 21, 22, 23, 27, 38, 39, 41.
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <queue>
#include <random>

#include "backup/core.h"
#include "primary/core.h"

namespace remusd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr uint64_t kGeneration = 5;
constexpr uint32_t kSeeds = 2000;
constexpr size_t kImagePages = 4;
constexpr Duration kHorizon = std::chrono::seconds(40);

enum Side { kPrimary = 0, kBackup = 1, kWorld = 2 };

class Pair {
 public:
  explicit Pair(uint32_t seed)
      : random_(seed),
        primary_(primary_config(), now_),
        backup_(backup::CoreConfig{.nonce = "backup's"}),
        record_{.generation = kGeneration, .owner = "a", .boot_id = "", .epoch = 0, .nonce = "protect"} {}

  void run() {
    plan_faults();
    primary_do(primary_.link_up(now_));
    backup_.admitted(kGeneration);
    at(kBackup, some(1000, 20000), [this] {
      backup::Actions actions;
      backup_.standby_ready(now_, &actions);
      backup_do(actions);
      if (!backup_.final()) send(kPrimary, [this] { primary_do(primary_.standby_ready(now_)); });
    });
    tick(kPrimary);
    tick(kBackup);
    while (!events_.empty() && now_ < end_ && !(over(kPrimary) && over(kBackup)) &&
           !testing::Test::HasFailure()) {
      Event event = events_.top();
      events_.pop();
      now_ = std::max(now_, event.when);
      if (event.side != kWorld) {
        if (dead_[event.side]) continue;
        if (frozen_until_[event.side] > now_) {
          event.when = frozen_until_[event.side];
          event.order = order_++;
          events_.push(std::move(event));
          continue;
        }
      }
      event.run();
      check();
    }
    check_end();
  }

  bool promoted() const { return promoted_; }
  bool passed() const { return passed_; }
  bool fenced() const { return fenced_; }
  uint64_t acked() const { return backup_.acked(); }

 private:
  struct Event {
    Time when;
    uint64_t order;
    Side side;
    std::function<void()> run;
    bool operator<(const Event& other) const {
      return when != other.when ? when > other.when : order > other.order;
    }
  };

  static primary::CoreConfig primary_config() {
    primary::CoreConfig config;
    config.generation = kGeneration;
    config.nonce = "primary's";
    config.node = "a";
    config.peer = "b";
    config.handshake_timeout = std::chrono::seconds(1);
    return config;
  }

  // Chance and time.
  bool chance(uint32_t percent) { return random_() % 100 < percent; }
  Duration some(uint32_t from_us, uint32_t to_us) {
    return microseconds(from_us + random_() % (to_us - from_us));
  }
  void at(Side side, Duration delay, std::function<void()> run) {
    events_.push({now_ + delay, order_++, side, std::move(run)});
  }
  bool over(Side side) const {
    return dead_[side] || (side == kPrimary ? primary_.final() : backup_.final());
  }

  void plan_faults() {
    const auto moment = [this] { return chance(15) ? some(0, 60000) : some(0, 900000); };
    if (chance(35))
      at(kWorld, moment(), [this] {
        dead_[kPrimary] = true;
        lose_contact(kBackup);
      });
    if (chance(20))
      at(kWorld, moment(), [this] {
        dead_[kBackup] = true;
        lose_contact(kPrimary);
      });
    for (const Side side : {kPrimary, kBackup}) {
      if (chance(30)) at(kWorld, moment(), [this, side] { cut_[side] = true; });
      if (chance(15)) {
        at(kWorld, moment(), [this, side] {
          frozen_until_[side] =
              now_ + (chance(20) ? Duration(std::chrono::seconds(10)) : some(10000, 900000));
        });
      }
    }
    if (chance(20))
      at(kWorld, moment(), [this] {
        lose_contact(kPrimary);
        lose_contact(kBackup);
      });
    if (chance(25)) {
      at(kWorld, moment(), [this] {
        arbiter_down_ = true;
        at(kWorld, some(10000, 4000000), [this] { arbiter_down_ = false; });
      });
    }
    ambiguous_percent_ = chance(40) ? 60 : 5;
    at(kWorld, std::chrono::seconds(10), [this] { ambiguous_percent_ = 0; });  // every outage ends
    if (chance(15)) at(kPrimary, moment(), [this] { primary_do(primary_.order_failover(now_)); });
    if (chance(15)) at(kPrimary, moment(), [this] { primary_do(primary_.unprotect("test", now_)); });
    if (chance(15)) {
      at(kBackup, moment(), [this] {
        backup::Actions actions;
        (void)backup_.order_failover("test", &actions);
        backup_do(actions);
      });
    }
    if (chance(4)) {
      at(kBackup, moment(), [this] {
        ended_by_hand_ = true;
        backup::Actions actions;
        backup_.end(Status(Code::ok, "test"), &actions);
        backup_do(actions);
      });
    }
    if (chance(10))
      at(kPrimary, moment(), [this] { primary_do(primary_.guest_error(Status(Code::io, "x"), now_)); });
  }

  // The link: in order, delayed, cut for good in a direction, closed once.
  void send(Side to, std::function<void()> run) {
    if (cut_[to] || !link_[1 - to]) return;
    arrival_[to] = std::max(arrival_[to], now_ + some(100, chance(5) ? 30000 : 2000));
    at(to, arrival_[to] - now_, [this, to, run = std::move(run)] {
      if (link_[to] && !cut_[to]) run();
    });
  }
  void close(Side side) {
    if (!link_[side]) return;
    send(static_cast<Side>(1 - side), [this, side] { contact_lost(static_cast<Side>(1 - side)); });
    link_[side] = false;
  }
  // The kernel tells that the peer is gone, if the way to us is open.
  void lose_contact(Side side) {
    if (!cut_[side]) at(side, some(100, 5000), [this, side] { contact_lost(side); });
  }
  void contact_lost(Side side) {
    if (!link_[side]) return;
    link_[side] = false;
    const Status why(Code::unavailable, "closed");
    if (side == kPrimary) return primary_do(primary_.link_lost(why, now_));
    backup::Actions actions;
    backup_.link_lost(why, &actions);
    backup_do(actions);
  }

  // The arbiter: one linear record. A request takes effect at some moment, or never, and its answer comes at
  // another, before or after, or says nothing.
  void ask(Side side, uint64_t expected, std::function<void(arbiter::Answer)> answer) {
    const arbiter::Record desired{.generation = expected + 1,
                                  .owner = side == kPrimary ? "a" : "b",
                                  .boot_id = "",
                                  .epoch = 0,
                                  .nonce = side == kPrimary ? "primary's" : "backup's"};
    const auto heard = std::make_shared<arbiter::Answer>();
    const bool never = chance(ambiguous_percent_ / 2);
    if (!never) {
      at(kWorld, some(100, ambiguous_percent_ > 0 && chance(10) ? 2000000 : 10000),
         [this, desired, expected, heard] {
           if (arbiter_down_) return;
           heard->verdict = arbiter::Verdict::lost;
           if (record_.generation == expected) {
             record_ = desired;
             heard->verdict = arbiter::Verdict::won;
           }
           heard->current = record_;
         });
    }
    const bool mute = chance(ambiguous_percent_);
    at(side, some(10000, 20000),
       [heard, mute, answer = std::move(answer)] { answer(mute ? arbiter::Answer() : *heard); });
  }

  void tick(Side side) {
    at(side, milliseconds(20), [this, side] {
      if (over(side)) return;
      if (side == kPrimary) {
        primary_do(primary_.tick(now_));
        if (primary_.link_wanted()) send(kBackup, [this] { backup_.heard(now_); });
      } else {
        backup::Actions actions;
        backup_.tick(now_, &actions);
        backup_do(actions);
        send(kPrimary, [this] { primary_.heard(now_); });
      }
      tick(side);
    });
  }

  // The primary's shell: an epoch loop and a sender.
  void primary_do(const primary::Actions& actions) {
    using Kind = primary::Action::Kind;
    for (const primary::Action& action : actions) {
      switch (action.kind) {
        case Kind::start_epochs:
          primary_.holding();
          at(kPrimary, some(5000, 200000), [this] { seal(); });
          break;
        case Kind::stop_epochs:
          stop_epochs_ = true;
          at(kPrimary, some(100, 20000), [this] { primary_do(primary_.epochs_stopped(now_)); });
          break;
        case Kind::release_through:
          ASSERT_LE(action.number, backup_.acked()) << "released what the backup never acknowledged";
          ASSERT_FALSE(fenced_) << "released after it was fenced";
          heard_epoch_ = std::max(heard_epoch_, action.number);
          break;
        case Kind::ask_arbiter:
          ask(kPrimary, action.number,
              [this](arbiter::Answer answer) { primary_do(primary_.arbiter(answer, now_)); });
          break;
        case Kind::pass_output:
          ASSERT_TRUE(committed_ == 0 || record_.nonce == "primary's")
              << "passed without the right to run alone";
          ASSERT_FALSE(promoted_) << "both are heard";
          passed_ = true;
          break;
        case Kind::fence:
          ASSERT_EQ(record_.nonce, "backup's");
          fenced_ = true;
          break;
        case Kind::send_order_failover:
          send(kBackup, [this] {
            backup::Actions out;
            backup_.heard(now_);
            (void)backup_.order_failover("the primary", &out);
            backup_do(out);
          });
          break;
        case Kind::send_goodbye:
          send(kBackup, [this] {
            backup::Actions out;
            backup_.goodbye("unprotected", &out);
            backup_do(out);
          });
          break;
        case Kind::close_link:
          close(kPrimary);
          break;
        case Kind::report:
          break;
      }
    }
    send_sealed();
  }
  void seal() {
    if (stop_epochs_ || primary_.final()) return;
    if (primary_.sealed_epoch() - primary_.acked_epoch() < primary::kMaxInFlight) {
      primary_.sealed(primary_.sealed_epoch() + 1);
      at(kPrimary, some(100, 8000), [this] { send_sealed(); });
    }
    at(kPrimary, some(5000, 25000), [this] { seal(); });
  }
  void send_sealed() {
    while (primary_.may_send() && primary_.sent_epoch() < primary_.sealed_epoch() &&
           primary_.sent_epoch() - primary_.acked_epoch() < primary::kMaxInFlight) {
      const uint64_t epoch = primary_.sent_epoch() + 1;
      committed_ = epoch;
      const primary::Actions after = primary_.sent(epoch, epoch * 31);
      send(kBackup, [this, epoch] { on_commit(epoch); });
      primary_do(after);
    }
  }

  // The backup's shell: a store that applies page by page.
  void on_commit(uint64_t epoch) {
    backup::Actions actions;
    backup_.heard(now_);
    if (backup_.data(epoch) == backup::Core::Take::stage && epoch == 1) image_.fill(1);
    backup_.epoch_staged(epoch, true, &actions);
    backup_do(actions);
  }
  void backup_do(backup::Actions actions) {
    using Kind = backup::ActionKind;
    for (const backup::Action& action : actions) {
      switch (action.kind) {
        case Kind::ack:
          send(kPrimary, [this, epoch = action.number] {
            primary_do(primary_.acked(kGeneration, epoch, epoch * 31, now_));
          });
          break;
        case Kind::apply:
          apply(action.number, 0);
          break;
        case Kind::ask_arbiter:
          ask(kBackup, action.number, [this](arbiter::Answer answer) {
            backup::Actions out;
            backup_.arbiter_answered(answer, now_, &out);
            backup_do(out);
          });
          break;
        case Kind::promote:
          at(kBackup, some(1000, 10000), [this, epoch = action.number] { promote(epoch); });
          break;
        case Kind::destroy_standby:
          destroyed_ = true;
          break;
        case Kind::close_link:
          close(kBackup);
          break;
        case Kind::report:
          break;
      }
    }
  }
  void apply(uint64_t epoch, size_t page) {
    at(kBackup, some(10, 6000), [this, epoch, page] {
      if (backup_.final()) return;
      // Epochs queue up behind each other, as they do in the store.
      if (backup_.applied() + 1 != epoch) return apply(epoch, page);
      image_[page] = epoch;
      if (page + 1 < kImagePages) return apply(epoch, page + 1);
      backup::Actions actions;
      backup_.applied(epoch, &actions);
      backup_do(actions);
    });
  }
  void promote(uint64_t epoch) {
    if (backup_.final()) return;
    ASSERT_FALSE(destroyed_);
    for (const uint64_t page : image_) ASSERT_EQ(page, epoch) << "the image is a mixture";
    ASSERT_EQ(epoch, backup_.acked());
    ASSERT_GE(epoch, heard_epoch_) << "something was heard that the replica does not remember";
    ASSERT_EQ(record_.nonce, "backup's") << "promoted without the right to run";
    ASSERT_FALSE(passed_) << "both are heard";
    promoted_ = true;
    backup::Actions actions;
    backup_.promotion_done({}, &actions);
    backup_do(actions);
  }

  void check() {
    ASSERT_LE(primary_.released_epoch(), primary_.acked_epoch());
    ASSERT_LE(primary_.acked_epoch(), primary_.sent_epoch());
    ASSERT_LE(primary_.sent_epoch(), primary_.sealed_epoch());
    ASSERT_LE(primary_.acked_epoch(), backup_.acked());
    ASSERT_LE(backup_.acked(), committed_);
    ASSERT_LE(backup_.applied(), backup_.acked());
    ASSERT_FALSE(promoted_ && passed_);
  }

  // After faults have ended somebody is heard, unless all who could be were killed.
  void check_end() {
    if (testing::Test::HasFailure()) return;
    ASSERT_FALSE(promoted_ && passed_);
    if (fenced_ && !dead_[kBackup] && !ended_by_hand_) {
      ASSERT_TRUE(promoted_) << "fenced for nobody";
    }
    const bool primary_settled =
        dead_[kPrimary] || primary_.final() || primary_.state() == primary::State::protecting;
    const bool backup_settled =
        dead_[kBackup] || backup_.final() || backup_.state() == backup::State::standby;
    ASSERT_TRUE(primary_settled) << to_string(primary_.state());
    ASSERT_TRUE(backup_settled) << to_string(backup_.state());
    if (dead_[kPrimary] && !passed_ && !dead_[kBackup] && !ended_by_hand_ && backup_.acked() > 0 &&
        record_.nonce != "primary's") {
      ASSERT_TRUE(promoted_) << "nobody runs, and the backup could: " << to_string(backup_.state());
    }
  }

  std::mt19937 random_;
  Time now_{std::chrono::hours(1)};
  const Time end_ = now_ + kHorizon;
  uint64_t order_ = 0;
  std::priority_queue<Event> events_;

  primary::Core primary_;
  backup::Core backup_;
  arbiter::Record record_;
  bool arbiter_down_ = false;
  uint32_t ambiguous_percent_ = 0;

  std::array<bool, 2> dead_{}, cut_{};
  std::array<bool, 2> link_{true, true};  // this side's end is open
  std::array<Time, 2> arrival_{}, frozen_until_{};

  bool stop_epochs_ = false;
  uint64_t committed_ = 0;    // newest COMMIT that was queued
  uint64_t heard_epoch_ = 0;  // newest epoch whose output the outside has heard
  std::array<uint64_t, kImagePages> image_{};
  bool passed_ = false, fenced_ = false, promoted_ = false, destroyed_ = false, ended_by_hand_ = false;
};

TEST(PairProperty, TheInvariantsHoldForEverySeed) {
  uint32_t promoted = 0, passed = 0, fenced = 0, committed = 0;
  for (uint32_t seed = 0; seed < kSeeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Pair pair(seed);
    pair.run();
    if (HasFailure()) return;
    promoted += pair.promoted();
    passed += pair.passed();
    fenced += pair.fenced();
    committed += pair.acked() > 1;
  }
  // The schedules must reach what they are to judge.
  EXPECT_GT(promoted, kSeeds / 8);
  EXPECT_GT(passed, kSeeds / 8);
  EXPECT_GT(fenced, kSeeds / 20);
  EXPECT_GT(committed, kSeeds / 2);
  RecordProperty("seeds", static_cast<int>(kSeeds));
  RecordProperty("promoted", static_cast<int>(promoted));
  RecordProperty("passed", static_cast<int>(passed));
  RecordProperty("fenced", static_cast<int>(fenced));
}

}  // namespace
}  // namespace remusd
