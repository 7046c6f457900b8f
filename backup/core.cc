// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/core.h"

#include <algorithm>

namespace remusd::backup {

std::string_view to_string(State state) {
  switch (state) {
    case State::handshake:
      return "handshake";
    case State::syncing:
      return "syncing";
    case State::standby:
      return "standby";
    case State::loading:
      return "loading";
    case State::deciding:
      return "deciding";
    case State::frozen:
      return "frozen";
    case State::fencing:
      return "fencing";
    case State::promoting:
      return "promoting";
    case State::promoted:
      return "promoted";
    case State::ended:
      return "ended";
    case State::failed:
      return "failed";
  }
  REMUSD_ASSERT(false, "a state without a name");
}

Core::Core(CoreConfig config)
    : config_(std::move(config)),
      detector_(config_.heartbeat_interval, config_.heartbeat_lost * ckpt::Detector::kSyncPatience) {
  REMUSD_ASSERT(!config_.nonce.empty(), "a request is known by its nonce");
}

void Core::admitted(uint64_t generation) {
  REMUSD_ASSERT(state_ == State::handshake && generation_ == 0, "a session is admitted once");
  REMUSD_ASSERT(generation > 0, "generation 0 means no record");
  generation_ = generation;
}

void Core::standby_ready(Time now, Actions* actions) {
  if (final()) return;
  REMUSD_ASSERT(state_ == State::handshake && generation_ > 0, "only an admitted session gets a standby");
  // The handshake has a deadline of its own: preparing a standby may take seconds on either side.
  detector_.start(now);
  next_look_ = now + config_.heartbeat_interval;
  enter(State::syncing, actions);
}

void Core::heard(Time now) {
  detector_.heard(now);
}

Core::Take Core::data(uint64_t epoch) const {
  if (acking_stopped_ || final()) return Take::drop;
  if (state_ != State::syncing && state_ != State::standby) return Take::corrupt;
  return epoch == acked_ + 1 ? Take::stage : Take::corrupt;
}

void Core::epoch_staged(uint64_t epoch, bool good, Actions* actions) {
  switch (data(epoch)) {
    case Take::drop:
      return;
    case Take::corrupt:
      return suspect(Status(Code::corrupt,
                            "epoch " + std::to_string(epoch) + " came after epoch " + std::to_string(acked_)),
                     Asking::after_head_start, actions);
    case Take::stage:
      break;
  }
  if (!good) {
    return suspect(Status(Code::corrupt, "epoch " + std::to_string(epoch) + " is not what its commit says"),
                   Asking::after_head_start, actions);
  }
  REMUSD_ASSERT(!acking_stopped_, "nothing is acknowledged after loss was suspected");
  acked_ = epoch;
  if (epoch == 1) {
    // The first epoch was written into the image as it came: the image is whole from this moment.
    applied_ = 1;
    detector_.set_lost_after(config_.heartbeat_lost);
    actions->push_back({ActionKind::ack, epoch, {}});
    enter(State::standby, actions);
    return;
  }
  actions->push_back({ActionKind::ack, epoch, {}});
  actions->push_back({ActionKind::apply, epoch, {}});
}

void Core::applied(uint64_t epoch, Actions* actions) {
  if (final()) return;
  REMUSD_ASSERT(epoch == applied_ + 1 && epoch <= acked_, "epochs are applied in order, after their ack");
  applied_ = epoch;
  if (state_ == State::loading) load_when_applied(actions);
  if (state_ == State::promoting) promote_when_applied(actions);
}

void Core::tick(Time now, Actions* actions) {
  if (now < next_tick()) return;
  if (state_ == State::deciding || state_ == State::frozen) return ask(actions);
  if (state_ == State::fencing) return fence(actions);
  // Once per interval: the detector counts its ticks.
  next_look_ = now + config_.heartbeat_interval;
  if (detector_.tick(now)) return;
  suspect(
      Status(Code::timed_out, "the primary has been silent for " +
                                  std::to_string(static_cast<int64_t>(to_ms(detector_.window()))) + " ms"),
      Asking::at_once, actions);
}

Time Core::next_tick() const {
  switch (state_) {
    case State::syncing:
    case State::standby:
      return next_look_;
    case State::deciding:
    case State::frozen:
      return asking_ ? Time::max() : next_ask_;
    case State::fencing:
      return fencing_ ? Time::max() : next_ask_;
    default:
      return Time::max();
  }
}

void Core::link_lost(const Status& why, Actions* actions) {
  if (final() || acking_stopped_) return;  // deciding already; the link is not needed for that
  suspect(why, Asking::after_head_start, actions);
}

void Core::goodbye(const std::string& reason, Actions* actions) {
  // While the right to run is being decided only the arbiter's word counts.
  if (final() || acking_stopped_) return;
  finish(State::ended, Status(Code::ok, "the primary ended protection: " + reason), actions);
}

// What an operator is told who wants the guest to run here.
Status Core::may_take_over(const std::string& what) const {
  switch (state_) {
    case State::handshake:
    case State::syncing:
      return Status(Code::unsafe,
                    what + " refused: no epoch is committed here yet; wait until the guest is protected");
    case State::standby:
    case State::loading:
    case State::deciding:
    case State::frozen:
    case State::fencing:
    case State::promoting:
      return {};
    case State::promoted:
      return Status(Code::exists, what + " refused: the guest already runs here");
    case State::ended:
    case State::failed:
      return Status(Code::unsafe, what + " refused: this session has ended (" + why_.message() + ")");
  }
  REMUSD_ASSERT(false, "a state without an answer");
}

Status Core::order_failover(const std::string& who, bool planned, Actions* actions) {
  REMUSD_TRY(may_take_over("failover"));
  if (state_ != State::standby) return {};
  planned_ = planned;
  suspect(Status(Code::ok, (planned ? "switchover" : "failover") + (" ordered by " + who)), Asking::at_once,
          actions);
  return {};
}

Status Core::order_switchover(Actions* actions) {
  REMUSD_TRY(may_take_over("switchover"));
  if (state_ != State::standby) {
    return Status(Code::unsafe, "switchover refused in state " + std::string(to_string(state_)));
  }
  actions->push_back({ActionKind::ask_switchover, 0, {}});
  return {};
}

Status Core::force(const std::string& who, Actions* actions) {
  REMUSD_TRY(may_take_over("failover --force"));
  if (state_ == State::promoting) return {};
  const bool was_won = state_ == State::fencing;
  if (state_ == State::standby) {
    suspect(Status(Code::ok, "failover forced by " + who), Asking::not_at_all, actions);
  } else {
    why_ = Status(why_.code(), why_.message() + "; forced by " + who);
  }
  forced_ = !was_won;
  planned_ = false;
  actions->push_back({ActionKind::close_link, 0, why_});
  enter(State::promoting, actions);
  promote_when_applied(actions);
  return {};
}

void Core::arbiter_answered(const arbiter::Answer& answer, Time now, Actions* actions) {
  REMUSD_ASSERT(asking_, "an answer without a question");
  asking_ = false;
  if (final() || forced_) return;
  REMUSD_ASSERT(state_ == State::deciding || state_ == State::frozen, "asked in a state that does not ask");
  REMUSD_ASSERT(acking_stopped_, "the right to run is asked for only when nothing is acknowledged any more");

  // "Lost" of this request: but an earlier one of ours, given up as unknown, may be what it lost to; and a
  // record that is missing or rolled back names no winner.
  arbiter::Verdict verdict = answer.verdict;
  const bool ours = answer.current && answer.current->nonce == config_.nonce;
  const bool taken = answer.current && answer.current->generation > generation_;
  if (verdict == arbiter::Verdict::lost && ours) verdict = arbiter::Verdict::won;
  if (verdict == arbiter::Verdict::lost && !taken) verdict = arbiter::Verdict::unknown;
  switch (verdict) {
    case arbiter::Verdict::won:
      return won(actions);
    case arbiter::Verdict::lost: {
      const std::string owner = "node " + answer.current->owner + " (generation " +
                                std::to_string(answer.current->generation) + ")";
      finish(State::ended, Status(Code::unsafe, "the right to run belongs to " + owner), actions);
      return;
    }
    case arbiter::Verdict::unknown:
      next_ask_ = retry_at(now);
      if (state_ != State::frozen) enter(State::frozen, actions);
      return;
  }
}

void Core::won(Actions* actions) {
  retry_ = {};
  if (!planned_) {
    actions->push_back({ActionKind::close_link, 0, Status(Code::ok, "the right to run was won here")});
  }
  // Who hands its guest over in order is alive, and lets it stand.
  if (config_.fence && !planned_) {
    enter(State::fencing, actions);
    return fence(actions);
  }
  enter(State::promoting, actions);
  promote_when_applied(actions);
}

void Core::fence(Actions* actions) {
  REMUSD_ASSERT(!fencing_, "one fence agent at a time");
  fencing_ = true;
  actions->push_back({ActionKind::fence_peer, 0, {}});
}

void Core::fenced(const Status& outcome, Time now, Actions* actions) {
  REMUSD_ASSERT(fencing_, "an agent's answer without a question");
  fencing_ = false;
  fence_note_ = outcome;
  if (state_ != State::fencing) return;  // forced meanwhile
  if (!outcome.ok()) {
    next_ask_ = retry_at(now);
    actions->push_back({ActionKind::report, 0, {}});
    return;
  }
  enter(State::promoting, actions);
  promote_when_applied(actions);
}

Time Core::retry_at(Time now) {
  retry_ = retry_ == Duration{} ? config_.retry_min : std::min(retry_ * 2, config_.retry_max);
  return now + retry_;
}

void Core::loaded(const Status& outcome, Actions* actions) {
  if (final()) return;
  REMUSD_ASSERT(load_ == Load::under_way, "a standby that was not to be loaded");
  if (!outcome.ok()) {
    // The primary's guest stands, and nobody has asked for it: told now, it goes on at once.
    const Status why = outcome.with_context("load the standby for the switchover");
    actions->push_back({ActionKind::tell_end, 0, why});
    return finish(State::failed, why, actions);
  }
  load_ = Load::done;
  if (state_ == State::promoting) return promote_when_applied(actions);  // forced meanwhile
  REMUSD_ASSERT(state_ == State::loading, "loaded in a state that does not load");
  enter(State::deciding, actions);
  ask(actions);
}

void Core::promotion_done(const Status& outcome, Actions* actions) {
  if (final()) return;
  REMUSD_ASSERT(promoting_, "a promotion that was not ordered");
  if (outcome.ok()) {
    enter(State::promoted, actions);
  } else {
    finish(State::failed, outcome.with_context("promotion"), actions);
  }
}

void Core::handshake_failed(const Status& why, Actions* actions) {
  if (final()) return;
  REMUSD_ASSERT(state_ == State::handshake, "the handshake is over");
  finish(State::failed, why, actions);
}

void Core::end(const Status& why, Actions* actions) {
  if (!final()) finish(State::ended, why, actions);
}

// Loss is suspected, or a failover ordered: from here on there is no way back.
void Core::suspect(const Status& why, Asking asking, Actions* actions) {
  REMUSD_ASSERT(!acking_stopped_ && !final(), "loss is suspected once");
  acking_stopped_ = true;
  if (acked_ == 0) return finish(State::failed, why, actions);  // no image: never promoted
  why_ = why;
  // After an order the link stays open until the answer: a primary that hears us does not run to the arbiter.
  if (!why.ok()) actions->push_back({ActionKind::close_link, 0, why});
  if (planned_) {
    enter(State::loading, actions);
    return load_when_applied(actions);
  }
  enter(State::deciding, actions);
  if (asking == Asking::at_once) return ask(actions);
  if (asking == Asking::not_at_all) return;
  next_ask_ = detector_.last_heard() + config_.head_start * config_.heartbeat_interval;
}

void Core::ask(Actions* actions) {
  REMUSD_ASSERT(acking_stopped_ && acked_ >= 1 && !asking_, "asked too early, or twice at a time");
  REMUSD_ASSERT(!planned_ || load_ == Load::done, "a guest that stands is asked for only once it is loaded");
  asking_ = true;
  actions->push_back({ActionKind::ask_arbiter, generation_, {}});
}

void Core::load_when_applied(Actions* actions) {
  if (applied_ != acked_ || load_ != Load::none) return;
  REMUSD_ASSERT(state_ == State::loading && acking_stopped_ && applied_ >= 1,
                "only a whole committed image is loaded");
  load_ = Load::under_way;
  actions->push_back({ActionKind::load, applied_, {}});
}

void Core::promote_when_applied(Actions* actions) {
  if (applied_ != acked_ || promoting_ || load_ == Load::under_way) return;
  REMUSD_ASSERT(state_ == State::promoting && acking_stopped_ && applied_ >= 1,
                "only a whole committed image is promoted");
  promoting_ = true;
  actions->push_back({ActionKind::promote, applied_, {}});
}

void Core::finish(State state, const Status& why, Actions* actions) {
  acking_stopped_ = true;
  why_ = why;
  actions->push_back({ActionKind::destroy_standby, 0, {}});
  actions->push_back({ActionKind::close_link, 0, why});
  enter(state, actions);
}

void Core::enter(State state, Actions* actions) {
  REMUSD_ASSERT(!final(), "a final state is never left");
  state_ = state;
  actions->push_back({ActionKind::report, 0, {}});
}

}  // namespace remusd::backup
