// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// GuestHost: what an earlier daemon of this node left running. Whose the guest is, the arbiter's record says:
//
//   process gone -> stopped        a standby -> ended: its session died with its daemon
//   record names us -> adopted: heard again, and protected again if it was
//   record names another node -> ended; fenced
//   no answer, or it cannot be taken over -> frozen: left as it is, unheard, and looked at again
//
// Nothing that such a guest says leaves the host meanwhile: its TAP went with the daemon.
#include <algorithm>

#include "control/driver_options.h"
#include "control/guest_host.h"
#include "control/log.h"

namespace remusd::control {
namespace {

constexpr std::chrono::milliseconds kFirstWait{200};
constexpr std::chrono::seconds kLongestWait{5};

}  // namespace

void GuestHost::inherit(GuestState left) {
  const std::lock_guard lock(mutex_);
  REMUSD_ASSERT(!has_guest_ && !session_, "what was left is looked at first");
  rest_.state = "frozen";
  rest_.reason = "an earlier daemon left it running";
  rest_.pid = left.pid;
  leftover_wait_ = kFirstWait;
  leftover_ = std::move(left);
  has_leftover_ = true;
}

void GuestHost::settle_leftover() {
  if (!leftover_ || Clock::now() < leftover_next_) return;
  if (leftover_->standby) {
    Status ended = end_process(*leftover_);
    if (!ended.ok()) return keep_leftover(ended);
    log(LogLevel::info, {name_}, "ended the standby that an earlier daemon left");
    drop_leftover("stopped", "");
    return retire_if_idle();
  }
  const auto record = context_.arbiter.read(name_, Clock::now() + context_.config.arbiter_timeout());
  const bool known = record.ok() && record->has_value();
  if (known) {
    const std::lock_guard lock(mutex_);
    rest_.generation = (*record)->generation;
  }
  if (!lives(*leftover_)) return drop_leftover("stopped", "its process ended while no daemon watched it");
  if (!record.ok()) return keep_leftover(record.status().with_context("the arbiter does not answer"));
  if (!known) return keep_leftover(Status(Code::unavailable, "the arbiter has no record of it: restore it"));
  if ((*record)->owner == context_.config.node && disks_are_behind(context_.config, name_)) {
    Status ended = end_process(*leftover_);
    if (!ended.ok()) return keep_leftover(ended);
    return drop_leftover("stopped",
                         "what it had written to its held disks was in the memory of a daemon that is gone: "
                         "the guest that was left was ended, its backup may take over");
  }
  if ((*record)->owner == context_.config.node) {
    const Status adopted = adopt_leftover();
    return adopted.ok() ? void() : keep_leftover(adopted);
  }
  Status ended = end_process(*leftover_);
  if (!ended.ok()) return keep_leftover(ended);
  drop_leftover("fenced", "node " + (*record)->owner + " won generation " +
                              std::to_string((*record)->generation) +
                              " while no daemon ran here: the guest that was left was ended");
}

Status GuestHost::adopt_leftover() {
  const guest::DriverOptions options = driver_options(context_.config);
  const GuestState left = *leftover_;
  // Its hypervisor connects to them again.
  REMUSD_ASSIGN(auto disks, open_disks(left.definition, context_.config, /*lives=*/true));
  REMUSD_ASSIGN(std::unique_ptr<guest::Guest> guest, left.launched
                                                         ? guest::adopt(left.definition, options, left.pid)
                                                         : guest::attach(left.definition, options));
  // Its standby, if it still waits, loses by this.
  REMUSD_TRY(win_right_to_run());
  REMUSD_ASSIGN(auto net, open_gates(*guest));
  net->announce();
  take_guest(left.definition, left.launched, std::move(disks), std::move(guest), std::move(net));
  leftover_.reset();
  const std::lock_guard lock(mutex_);
  has_leftover_ = false;
  if (left.wanted) {
    ever_protected_ = true;
    rest_.state = "unprotected";
    rest_.reason = "its daemon was restarted";
    rest_.peer = left.peer;
    reprotect_.adopt({left.peer, left.pace}, Clock::now());
  }
  log(LogLevel::warn, {name_, rest_.generation, 0},
      "adopted the guest that an earlier daemon left as process " + std::to_string(left.pid));
  return {};
}

void GuestHost::keep_leftover(const Status& why) {
  leftover_next_ = Clock::now() + leftover_wait_;
  leftover_wait_ = std::min<Duration>(2 * leftover_wait_, kLongestWait);
  const std::lock_guard lock(mutex_);
  const std::string reason = "an earlier daemon left it as process " + std::to_string(leftover_->pid) +
                             ", it is not heard: " + why.message();
  if (reason == rest_.reason) return;
  rest_.reason = reason;
  rest_.reason_code = to_string(why.code());
  log(LogLevel::warn, {name_, rest_.generation, 0}, reason);
}

void GuestHost::drop_leftover(const std::string& state, const std::string& reason) {
  forget_guest_state(context_.config.state_dir, name_);
  leftover_.reset();
  const std::lock_guard lock(mutex_);
  has_leftover_ = false;
  rest_.state = state;
  rest_.reason = reason;
  rest_.reason_code.clear();
  rest_.pid = 0;
  if (!reason.empty()) log(LogLevel::warn, {name_, rest_.generation, 0}, reason);
}

// For the daemon that comes after this one. On the strand; writes only what is new.
void GuestHost::remember() {
  if (guest_ == nullptr || guest_->pid() <= 0) return;
  GuestState now = saved_;
  if (now.standby || now.vm.empty() || now.pid != guest_->pid()) {
    now = {};
    now.vm = name_;
    now.definition = definition_;
    now.launched = launched_;
    identify(guest_->pid(), &now);
    if (now.started.empty()) return;  // It has ended already.
  }
  {
    const std::lock_guard lock(mutex_);
    const bool held = protection_ != nullptr && last_protection_.acked > 0;
    now.wanted = held || reprotect_.wanted();
    if (now.wanted) now.peer = held ? rest_.peer : reprotect_.target().peer;
    if (now.wanted) now.pace = held ? rest_.pace : reprotect_.target().pace;
  }
  save(std::move(now));
}

void GuestHost::standby_started(int pid) {
  {
    const std::lock_guard lock(mutex_);
    if (session_ == nullptr || has_guest_) return;
  }
  GuestState now;
  now.vm = name_;
  now.standby = true;
  identify(pid, &now);
  if (!now.started.empty()) save(std::move(now));
}

/// Nothing: there is no process any more.
void GuestHost::save(GuestState now) {
  if (now == saved_) return;
  if (now.vm.empty()) {
    forget_guest_state(context_.config.state_dir, name_);
  } else if (Status saved = save_guest_state(context_.config.state_dir, now); !saved.ok()) {
    log(LogLevel::error, {name_}, "a restarted daemon will not know this guest: " + saved.message());
  }
  saved_ = std::move(now);
}

}  // namespace remusd::control
