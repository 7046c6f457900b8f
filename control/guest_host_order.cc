// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// GuestHost: an operator has the guest change hands.
#include "control/guest_host.h"
#include "control/log.h"

namespace remusd::control {
namespace {

constexpr std::chrono::seconds kPatience{30};

}  // namespace

std::shared_ptr<backup::Session> GuestHost::session() const {
  const std::lock_guard lock(mutex_);
  return session_ == nullptr ? nullptr : session_->session();
}

Reply GuestHost::failover(bool dry_run) {
  return hand_over(ckpt::OrderKind::failover, dry_run);
}

Reply GuestHost::switchover(bool dry_run) {
  return hand_over(ckpt::OrderKind::switchover, dry_run);
}

/// On either side: the backup runs the guest, from its newest epoch or, planned, from the last one.
Reply GuestHost::hand_over(ckpt::OrderKind kind, bool dry_run) {
  settle();
  const bool planned = kind == ckpt::OrderKind::switchover;
  const std::string verb = planned ? "switchover" : "failover";
  const std::string what = verb + " " + name_;
  const GuestStatus now = status();
  if (const auto session = this->session()) {
    if (planned && now.state != "standby") {
      return Status(Code::unsafe, what + ": refused in state " + now.state +
                                      ": the pair is not whole; 'remusd failover " + name_ +
                                      "' does not need its primary");
    }
    if (dry_run) {
      return Reply::would(planned ? "have node '" + now.peer + "' hand " + name_ + " over to this node"
                                  : "stop acknowledging and promote the replica of " + name_ + " here");
    }
    const Status ordered = planned ? session->order_switchover() : session->order_failover();
    if (!ordered.ok()) return ordered.with_context(name_);
    return wait_session_end(verb);
  }
  if (guest_ == nullptr) return not_here(verb);
  const auto live = protection();
  if (live == nullptr) {
    return Reply::not_protected(what + ": it runs here unprotected, nobody could take over");
  }
  if (now.state != "protected") {
    return Status(Code::unsafe, what + ": refused in state " + now.state + "; wait until it is protected");
  }
  if (dry_run) return Reply::would("let node '" + now.peer + "' take over " + name_);
  planned ? live->order_switchover() : live->order_failover();
  if (!wait_protection_end(kPatience)) {
    return Status(Code::timed_out, what + ": not decided yet (" + status().state + ")");
  }
  settle();
  const GuestStatus after = status();
  if (after.state == "fenced") return to_json(after);
  return Status(Code::unavailable, what + ": the backup did not take over, the guest is " + after.state +
                                       " here: " + after.reason);
}

/// Where the arbiter, or the fence agent, keeps the guest from running, an operator's word counts instead.
Reply GuestHost::force_failover(bool dry_run) {
  settle();
  const auto session = this->session();
  if (session == nullptr) {
    return Status(Code::unsafe, "failover --force " + name_ +
                                    ": this node holds no replica of it; on the node that runs it, " +
                                    "'remusd unprotect --force' lets it go on alone");
  }
  if (dry_run) return Reply::would("promote the replica of " + name_ + " here without asking the arbiter");
  log(LogLevel::warn, {name_}, "failover forced by an operator, without the arbiter's word");
  if (Status forced = session->force_failover(); !forced.ok()) return forced.with_context(name_);
  return wait_session_end("failover --force");
}

Reply GuestHost::force_unprotect(bool dry_run) {
  settle();
  if (guest_ == nullptr) return not_here("unprotect --force");
  const auto live = protection();
  if (live == nullptr) return Reply::not_protected("unprotect --force " + name_ + ": it is not protected");
  const std::string state = status().state;
  if (state != "deciding" && state != "frozen") {
    return Status(Code::unsafe, "unprotect --force " + name_ + ": refused in state " + state +
                                    ": nothing is being decided; unprotect it without --force");
  }
  if (dry_run) return Reply::would("let " + name_ + " go on alone without asking the arbiter");
  log(LogLevel::warn, {name_}, "unprotect forced by an operator, without the arbiter's word");
  live->force();
  if (!wait_protection_end(kPatience)) {
    return Status(Code::timed_out, "unprotect --force " + name_ + ": not done yet (" + status().state + ")");
  }
  settle();
  return to_json(status());
}

/// After an order to the session: what became of it.
Reply GuestHost::wait_session_end(const std::string& what) {
  std::unique_lock lock(mutex_);
  const auto slot = session_;
  const auto ended = [&] { return slot == nullptr || is_final(slot->last().state); };
  if (!changed_.wait_for(lock, kPatience, ended)) {
    return Status(Code::timed_out,
                  what + " " + name_ + ": not decided yet; see 'remusd status " + name_ + "'");
  }
  const backup::Snapshot last = slot == nullptr ? backup::Snapshot{} : slot->last();
  lock.unlock();
  if (last.state != backup::State::promoted) {
    const Code code = last.end.ok() ? Code::unavailable : last.end.code();
    return Status(code, what + " " + name_ + ": this node did not become its primary: " + last.end.message());
  }
  // The guest itself is handed over by the next job on the strand.
  GuestStatus now = status();
  now.role = "primary";
  now.state = "unprotected";
  now.promote_ms = last.promote_seconds * 1e3;
  return to_json(now);
}

/// On the strand: a right to run that was taken by force is brought into the record.
void GuestHost::settle_claim() {
  if (!claim_) return;
  const std::optional<Status> outcome = claim_->look(Clock::now(), context_.config.arbiter_timeout());
  if (!outcome) return;
  claim_.reset();
  if (outcome->ok()) return log(LogLevel::info, {name_}, "the arbiter's record knows now that it runs here");
  log(LogLevel::error, {name_}, outcome->message());
  const std::lock_guard lock(mutex_);
  rest_.reason = outcome->message();
  rest_.reason_code = to_string(outcome->code());
}

}  // namespace remusd::control
