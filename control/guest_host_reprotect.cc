// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// GuestHost: how a guest that lost its protection gets it back without an operator (reprotect.h).
#include "ckpt/link.h"
#include "control/duration.h"
#include "control/guest_host.h"
#include "control/log.h"

namespace remusd::control {
namespace {

// An attempt wins a generation from the arbiter; a peer that is not there is not worth one.
constexpr std::chrono::seconds kProbePatience{1};
constexpr std::chrono::seconds kReplacePatience{5};

}  // namespace

// A protection has ended. One that an operator ended says so by a reason that is no failure.
void GuestHost::plan_reprotect(const primary::Snapshot& last) {
  if (last.state != primary::State::unprotected) return;
  const bool ours = automatic_;
  automatic_ = false;
  if (last.acked > 0) {
    if (!last.end.ok()) reprotect_.want({rest_.peer, rest_.pace}, last.end, Clock::now());
  } else if (ours) {
    reprotect_.failed(last.end, Clock::now());
  }
  if (!reprotect_.wanted()) return;
  log(LogLevel::info, {name_, rest_.generation, 0},
      "node " + reprotect_.target().peer + " shall protect it again, next attempt in " +
          format_duration(reprotect_.next_in(Clock::now())));
}

void GuestHost::reprotect_when_due() {
  Reprotect::Target target;
  {
    const std::lock_guard lock(mutex_);
    if (!has_guest_ || protection_ != nullptr || !reprotect_.due(Clock::now())) return;
    target = reprotect_.began();
  }
  metrics_->on_reprotect();
  Status outcome = check_protect(target.peer);
  if (outcome.ok()) {
    const std::string& address = context_.config.peers.at(target.peer);
    outcome = ckpt::connect_to(address, kProbePatience).status().with_context("peer " + target.peer);
  }
  if (outcome.ok()) outcome = begin_protection(target.peer, target.pace, true);
  if (outcome.ok()) return;  // How it ends is told by settle().
  const std::lock_guard lock(mutex_);
  const std::string before = reprotect_.last_error();
  reprotect_.failed(outcome, Clock::now());
  if (outcome.message() == before) return;  // told already; status counts the attempts
  log(LogLevel::warn, {name_, rest_.generation, 0},
      "cannot be protected again yet: " + outcome.message() +
          (outcome.code() == Code::unsafe ? "; waiting alone does not mend that" : ""));
}

void GuestHost::stop_reprotecting() {
  const std::lock_guard lock(mutex_);
  reprotect_.clear();
  automatic_ = false;
}

bool GuestHost::reprotecting() const {
  const std::lock_guard lock(mutex_);
  return reprotect_.wanted();
}

/// An operator's protect meets one of ours. The same one becomes the operator's (true); another one that has
/// not come about is ended to make room.
bool GuestHost::replace_attempt(const std::string& peer, const primary::PaceOptions& pace) {
  std::shared_ptr<primary::Protection> live;
  {
    const std::lock_guard lock(mutex_);
    if (protection_ == nullptr || !automatic_ || is_final(last_protection_.state)) return false;
    if (rest_.peer == peer && rest_.pace == pace) {
      automatic_ = false;
      reprotect_.clear();
      return true;
    }
    if (last_protection_.acked > 0) return false;
    live = protection_;
  }
  live->unprotect("replaced by an operator's protect");
  live.reset();
  (void)wait_protection_end(kReplacePatience);  // Otherwise the operator is told that one is under way.
  settle();
  return false;
}

/// Wins a generation that names no peer, so that a later start here need not fear a newer replica there.
void GuestHost::disown_replicas() {
  record_names_peer_ = true;
  if (Status won = win_right_to_run(); !won.ok()) {
    log(LogLevel::warn, {name_}, "the arbiter still names a peer that has no replica: " + won.message());
  }
}

}  // namespace remusd::control
