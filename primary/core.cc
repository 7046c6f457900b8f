// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/core.h"

#include <algorithm>

namespace remusd::primary {

using Kind = Action::Kind;

std::string_view to_string(State state) {
  switch (state) {
    case State::connecting:
      return "connecting";
    case State::syncing:
      return "syncing";
    case State::protecting:
      return "protecting";
    case State::deciding:
      return "deciding";
    case State::frozen:
      return "frozen";
    case State::unprotected:
      return "unprotected";
    case State::fenced:
      return "fenced";
    case State::failed:
      return "failed";
  }
  return "unknown";
}

void Actions::add(Kind kind, uint64_t number) {
  REMUSD_ASSERT(size_ < items_.size(), "one event causes a handful of actions");
  items_[size_++] = Action{kind, number};
}

Core::Core(const CoreConfig& config, Time now)
    : config_(config),
      detector_(config.heartbeat_interval, config.heartbeat_lost * ckpt::Detector::kSyncPatience),
      handshake_began_(now),
      backoff_(config.backoff_first) {
  REMUSD_ASSERT(config.generation > 0, "a session has a generation of its own");
  REMUSD_ASSERT(!config.nonce.empty(), "a request for the right to run is named");
}

bool Core::final() const {
  return state_ == State::unprotected || state_ == State::fenced || state_ == State::failed;
}

bool Core::may_send() const {
  if (!link_up_) return false;
  if (state_ == State::syncing || state_ == State::protecting) return true;
  const bool ordering = intent_ == Intent::order || intent_ == Intent::hand_over;
  return state_ == State::deciding && ordering && !order_sent_;
}

void Core::check() const {
  REMUSD_ASSERT(released_ <= acked_, "output leaves only once its epoch is acknowledged");
  REMUSD_ASSERT(acked_ <= sent_, "only what was sent can be acknowledged");
  REMUSD_ASSERT(sent_ <= sealed_, "only what was sealed can be sent");
  REMUSD_ASSERT(!(passed_ && fenced_), "the right to run is won or lost, not both");
  REMUSD_ASSERT(!passed_ || sent_ == 0 || won_, "output passes only with the right to run alone");
}

void Core::enter(State state, Actions* out) {
  if (state_ == state) return;
  state_ = state;
  out->add(Kind::report);
}

void Core::stop_epochs(Actions* out) {
  if (!epochs_running_ || stop_asked_) return;
  stop_asked_ = true;
  out->add(Kind::stop_epochs);
}

void Core::drop_link(Actions* out) {
  if (!link_up_) return;
  link_up_ = false;
  out->add(Kind::close_link);
}

Actions Core::link_up(Time now) {
  Actions out;
  if (state_ != State::connecting) return out;
  link_up_ = true;
  handshake_began_ = now;
  return out;
}

Actions Core::standby_ready(Time now) {
  Actions out;
  if (state_ != State::connecting || !link_up_) return out;
  detector_.start(now);
  epochs_running_ = true;
  enter(State::syncing, &out);
  out.add(Kind::start_epochs);
  return out;
}

void Core::heard(Time now) {
  if (link_up_) detector_.heard(now);
}

void Core::holding() {
  holding_ = true;
}

void Core::sealed(uint64_t epoch) {
  REMUSD_ASSERT(epoch == sealed_ + 1, "epochs are sealed one by one");
  REMUSD_ASSERT(holding_, "output is held before the first epoch is sealed");
  sealed_ = epoch;
  check();
}

Actions Core::sent(uint64_t epoch, uint64_t digest) {
  REMUSD_ASSERT(may_send(), "no COMMIT may follow the decision to leave");
  REMUSD_ASSERT(epoch == sent_ + 1 && epoch <= sealed_, "epochs are sent one by one, after they are sealed");
  REMUSD_ASSERT(epoch - acked_ <= kMaxInFlight, "few epochs are in flight");
  Actions out;
  sent_ = epoch;
  digests_[epoch % kDigests] = digest;
  check();
  order_when_drained(&out);
  return out;
}

Actions Core::acked(uint64_t generation, uint64_t epoch, uint64_t digest, Time now) {
  Actions out;
  if (final() || !link_up_) return out;
  const auto corrupt = [&](const std::string& what) {
    lose(Status(Code::corrupt,
                "backup " + config_.peer + " acknowledged " + what + ": the session is worthless"),
         Duration::zero(), now, &out);
    return out;
  };
  if (generation != config_.generation)
    return corrupt("generation " + std::to_string(generation) + " in a session of generation " +
                   std::to_string(config_.generation));
  if (epoch == 0 || epoch > sent_)
    return corrupt("epoch " + std::to_string(epoch) + ", which was never sent");
  if (epoch + kDigests > sent_ && digests_[epoch % kDigests] != digest)
    return corrupt("epoch " + std::to_string(epoch) + " with another digest than was sent");
  detector_.heard(now);
  if (epoch <= acked_) return out;  // Repeated or overtaken: it says nothing new.
  // Every epoch builds on the one before, so an acknowledgement covers all earlier ones.
  acked_ = epoch;
  check();
  REMUSD_ASSERT(!passed_ && !fenced_, "nothing is released after the decision");
  released_ = epoch;
  out.add(Kind::release_through, epoch);
  check();
  if (state_ == State::syncing) {
    detector_.set_lost_after(config_.heartbeat_lost);
    enter(State::protecting, &out);
  }
  return out;
}

Actions Core::link_lost(const Status& why, Time now) {
  Actions out;
  lose(why, config_.head_start, now, &out);
  return out;
}

Actions Core::refused(const Status& why, Time now) {
  Actions out;
  lose(why, Duration::zero(), now, &out);  // It said itself that it will not take over.
  return out;
}

/// Contact ended. `head_start` is granted only to a backup that was ordered to take over.
void Core::lose(const Status& why, Duration head_start, Time now, Actions* out) {
  if (final()) return;
  const bool before = state_ == State::connecting;
  if (!link_up_ && !before) return;
  drop_link(out);
  if (intent_ == Intent::none) {
    intent_ = Intent::lost;
    end_ = why;
    decide(now, out);
  } else if (intent_ == Intent::order && !asking_ && !ask_at_ && !won_) {
    if (!order_sent_) head_start = Duration::zero();  // It never heard the order.
    end_ = why.with_context("the ordered failover did not take place");
    stop_epochs(out);
    ask_at_ = now + head_start;
    ask_when_due(now, out);
  } else if (intent_ == Intent::hand_over) {
    abandon(out);
  }
  // Else the arbiter is being asked already: its answer decides.
}

/// Leaves in order: the arbiter first, the link stays up for the goodbye.
void Core::leave(Intent intent, Status why, Time now, Actions* out) {
  if (final()) return;
  const bool deciding = intent_ != Intent::none;
  intent_ = intent;
  end_ = std::move(why);
  order_deadline_.reset();
  if (!deciding) return decide(now, out);
  if (sent_ > 0 && !asking_ && !won_ && !ask_at_) {  // An order was waiting for the backup to go away.
    ask_at_ = now;
    ask_when_due(now, out);
  }
}

void Core::decide(Time now, Actions* out) {
  stop_epochs(out);
  if (sent_ == 0) {
    // The backup cannot have a committed epoch, and may_send() is false from here on: the generation that we
    // hold already is the right to run.
    if (!epochs_running_) return conclude(out);
    return enter(State::deciding, out);
  }
  enter(State::deciding, out);
  ask_at_ = now;
  ask_when_due(now, out);
}

void Core::ask_when_due(Time now, Actions* out) {
  if (!ask_at_ || now < *ask_at_ || asking_ || won_) return;
  ask_at_.reset();
  asking_ = true;
  out->add(Kind::ask_arbiter, config_.generation);
}

/// Signs of life are not enough: bytes can come for long without a frame becoming whole (a flipped bit in a
/// length), or staging can hang, and output is held all that time. Ticks are counted, not time, so that a
/// stall of ours says nothing about the backup.
bool Core::ack_overdue() {
  const bool waiting = acked_ < sent_ && acked_ == ticked_ack_;
  ticked_ack_ = acked_;
  ticks_without_ack_ = waiting ? ticks_without_ack_ + 1 : 0;
  return link_up_ && intent_ == Intent::none &&
         ticks_without_ack_ * config_.heartbeat_interval >= config_.ack_timeout;
}

Actions Core::tick(Time now) {
  Actions out;
  if (final()) return out;
  if (state_ == State::connecting && intent_ == Intent::none &&
      now - handshake_began_ > config_.handshake_timeout) {
    lose(Status(Code::timed_out,
                "backup " + config_.peer + " did not become ready within " +
                    std::to_string(static_cast<int64_t>(to_seconds(config_.handshake_timeout))) +
                    " s: see its log"),
         Duration::zero(), now, &out);
    return out;
  }
  if (link_up_ && !detector_.tick(now)) {
    lose(Status(Code::unavailable, "backup " + config_.peer + " gave no sign of life for " +
                                       std::to_string(static_cast<int64_t>(to_ms(detector_.window()))) +
                                       " ms"),
         config_.head_start, now, &out);
  }
  if (ack_overdue()) {
    lose(
        Status(Code::timed_out, "backup " + config_.peer + " lives, but acknowledged nothing for " +
                                    std::to_string(static_cast<int64_t>(to_ms(config_.ack_timeout))) + " ms"),
        Duration::zero(), now, &out);
  }
  if (order_deadline_ && now >= *order_deadline_) {
    order_deadline_.reset();
    lose(Status(Code::timed_out, "backup " + config_.peer + " did not follow the order"), config_.head_start,
         now, &out);
  }
  ask_when_due(now, &out);
  return out;
}

Actions Core::arbiter(const arbiter::Answer& answer, Time now) {
  Actions out;
  REMUSD_ASSERT(asking_, "an answer belongs to a question");
  asking_ = false;
  if (final()) return out;
  const bool ours = answer.current && answer.current->nonce == config_.nonce;
  if (answer.verdict == arbiter::Verdict::won || ours) {
    won_ = true;
    note_.clear();
    conclude(&out);
    if (!final()) enter(State::deciding, &out);  // Epochs are still stopping.
    return out;
  }
  if (answer.verdict == arbiter::Verdict::lost && answer.current &&
      answer.current->generation > config_.generation) {
    fence(*answer.current, &out);
    return out;
  }
  // Unknown, or a record that is missing or rolled back: neither side is known to have won. Never guess.
  if (intent_ == Intent::gone) {
    abandon(&out);
    return out;
  }
  note_ = !answer.why.ok() ? answer.why.message()
                           : "the arbiter's record is missing or older than generation " +
                                 std::to_string(config_.generation) + ": restore it";
  ask_at_ = now + backoff_;
  backoff_ = std::min(backoff_ * 2, config_.backoff_limit);
  enter(State::frozen, &out);
  return out;
}

Actions Core::epochs_stopped(Time now) {
  Actions out;
  epochs_running_ = false;
  if (final()) return out;
  if (intent_ == Intent::none) {  // It ended without being asked and without a reason of the guest's.
    leave(Intent::leave, Status(Code::io, "epochs stopped by themselves"), now, &out);
    return out;
  }
  conclude(&out);
  order_when_drained(&out);
  return out;
}

void Core::order_when_drained(Actions* out) {
  const bool ordering = intent_ == Intent::order || intent_ == Intent::hand_over;
  if (!ordering || order_sent_ || !link_up_ || epochs_running_ || sent_ != sealed_) return;
  order_sent_ = true;
  out->add(Kind::send_order);
}

void Core::conclude(Actions* out) {
  const bool may_run = won_ || (sent_ == 0 && intent_ != Intent::none);
  if (final() || !may_run || epochs_running_) return;
  passed_ = true;
  if (planned_) out->add(Kind::let_run);
  out->add(Kind::pass_output);
  if (link_up_) out->add(Kind::send_goodbye);
  drop_link(out);
  ask_at_.reset();
  order_deadline_.reset();
  check();
  enter(intent_ == Intent::gone ? State::failed : State::unprotected, out);
}

void Core::fence(const arbiter::Record& winner, Actions* out) {
  fenced_ = true;
  const std::string who = "node " + winner.owner + " won generation " + std::to_string(winner.generation);
  end_ = intent_ == Intent::order
             ? Status(Code::ok, who + " as ordered: the guest runs there")
             : Status(Code::unsafe, who + ": the guest runs there, this copy was destroyed");
  out->add(Kind::fence);
  stop_epochs(out);
  drop_link(out);
  check();
  enter(State::fenced, out);
}

/// Nothing is left to run here, and the backup may have a committed epoch: what counts is that it runs that.
void Core::abandon(Actions* out) {
  fenced_ = true;
  out->add(Kind::fence);
  stop_epochs(out);
  drop_link(out);
  ask_at_.reset();
  order_deadline_.reset();
  check();
  enter(State::failed, out);
}

Actions Core::guest_gone(const Status& why, Time now) {
  Actions out;
  if (final()) return out;
  if (sent_ == 0 || asking_ || won_) {  // The backup has nothing, or the answer decides.
    leave(Intent::gone, why, now, &out);
    return out;
  }
  end_ = Status(why.code(), why.message() + "; node " + config_.peer + " may take over");
  intent_ = Intent::hand_over;
  ask_at_.reset();
  if (!link_up_ || acked_ == 0) {  // Told by the link's end, if at all.
    abandon(&out);
    return out;
  }
  if (!order_deadline_) order_deadline_ = now + config_.order_timeout;
  enter(State::deciding, &out);
  stop_epochs(&out);
  order_when_drained(&out);
  return out;
}

Actions Core::guest_error(const Status& why, Time now) {
  Actions out;
  // A guest that could not be made to stand may have run on: it is not handed over.
  const bool planned = intent_ == Intent::order && planned_ && !order_sent_;
  if (intent_ == Intent::none || planned) leave(Intent::leave, why, now, &out);
  return out;
}

Actions Core::too_slow(const Status& why, Time now) {
  Actions out;
  if (state_ == State::protecting && intent_ == Intent::none) leave(Intent::leave, why, now, &out);
  return out;
}

Actions Core::unprotect(const std::string& reason, Time now) {
  Actions out;
  if (intent_ == Intent::none || intent_ == Intent::order)
    leave(Intent::leave, Status(Code::ok, reason), now, &out);
  if (intent_ == Intent::hand_over && !final()) abandon(&out);  // Ending the link tells the backup as well.
  return out;
}

bool Core::order(Duration timeout, Time now) {
  if (state_ != State::protecting || intent_ != Intent::none) {
    note_ = "order refused: no checkpoint is acknowledged, or protection is ending already";
    return false;
  }
  intent_ = Intent::order;
  order_deadline_ = now + timeout;
  return true;
}

Actions Core::order_failover(Time now) {
  Actions out;
  if (!order(config_.order_timeout, now)) return out;
  enter(State::deciding, &out);
  stop_epochs(&out);
  order_when_drained(&out);
  return out;
}

Actions Core::order_switchover(Time now) {
  Actions out;
  if (!order(config_.switchover_timeout, now)) return out;
  planned_ = true;
  enter(State::deciding, &out);
  REMUSD_ASSERT(epochs_running_ && !stop_asked_, "epochs run while the pair is whole");
  stop_asked_ = true;
  out.add(Kind::last_epoch);
  return out;
}

Actions Core::force() {
  Actions out;
  const bool deciding = state_ == State::deciding || state_ == State::frozen;
  if (!deciding || won_ || (intent_ != Intent::lost && intent_ != Intent::leave)) {
    note_ = "force refused: the right to run is not being decided";
    return out;
  }
  won_ = forced_ = true;
  ask_at_.reset();
  end_ = Status(end_.code(), end_.message() + "; runs alone on an operator's word, not the arbiter's");
  conclude(&out);
  return out;
}

}  // namespace remusd::primary
