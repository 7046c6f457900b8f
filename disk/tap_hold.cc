// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The tap's part about held disks.
#include <utility>

#include "ckpt/status.h"
#include "disk/tap.h"

namespace remusd::disk {

FlushFate Tap::flush_fate(size_t disk) {
  if (!hold_.has(disk)) return FlushFate::make;
  const std::lock_guard lock(mutex_);
  if (hold_.broken(disk)) return FlushFate::refuse;
  if (hold_.state() == Hold::State::passing) return FlushFate::make;
  if (hold_.keeps() && !heard_) return FlushFate::answer;
  // Kept and heard at once: it must be on the medium first.
  waiting_ = true;
  return FlushFate::wait;
}

std::unique_ptr<KeptRun> Tap::kept(size_t disk, uint64_t offset, uint64_t bytes, bool content) {
  if (!hold_.has(disk)) return nullptr;
  const std::lock_guard lock(mutex_);
  return hold_.overlay().look(disk, offset, bytes, content);
}

Result<bool> Tap::may_log() {
  {
    const std::lock_guard lock(mutex_);
    if (hold_.disks() == 0) return true;
    if (!hold_.failure().ok()) return hold_.failure();
    if (hold_.state() != Hold::State::passing) return false;
  }
  if (begin_hold_) REMUSD_TRY(begin_hold_());
  return true;
}

/// What has changed is told: to the settler, to whoever waits, and, when `retry`, to the server.
void Tap::tell_hold(std::unique_lock<std::mutex>& lock, bool retry) {
  may_write_ = hold_.may_write();
  retry = retry && take_waiting();
  lock.unlock();
  changed_.notify_all();
  if (retry) retry_();
  const std::lock_guard watching(watch_mutex_);
  if (watch_) watch_();
}

void Tap::watch_hold(std::function<void()> changed) {
  const std::lock_guard lock(watch_mutex_);
  watch_ = std::move(changed);
}

void Tap::freeze() {
  std::unique_lock lock(mutex_);
  hold_.freeze();
  tell_hold(lock, false);
}

void Tap::won() {
  std::unique_lock lock(mutex_);
  if (hold_.keeps()) {
    // Whether or not it was acknowledged: nobody else's state counts any more.
    close_open(0);
    for (auto& log : std::exchange(sealed_, {})) {
      if (log->log.touches(hold_.disks())) {
        hold_.give(std::move(log));
      } else {
        sealed_bytes_ -= log->held_bytes;
      }
    }
    hold_.win();
  }
  tell_hold(lock, true);
}

void Tap::lost() {
  std::unique_lock lock(mutex_);
  hold_.lose();
  tell_hold(lock, false);
}

bool Tap::quiet() const {
  const std::lock_guard lock(mutex_);
  return hold_.quiet() || hold_.disks() == 0 || hold_.state() == Hold::State::passing;
}

bool Tap::await_passing(Time deadline) {
  std::unique_lock lock(mutex_);
  const auto over = [this] { return hold_.state() == Hold::State::passing || !hold_.failure().ok(); };
  return changed_.wait_until(lock, deadline, over);
}

Status Tap::hold_failure() const {
  const std::lock_guard lock(mutex_);
  return hold_.failure();
}

// ---- Settling

Hold::Chore Tap::next_chore(Logs* logs) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return hold_.chore() != Hold::Chore::wait; });
  logs->assign(hold_.logs().begin(), hold_.logs().end());
  return hold_.chore();
}

void Tap::settled(size_t logs) {
  for (; logs > 0; --logs) {
    // One at a time: the guest's requests and its pause wait for this lock.
    const std::lock_guard lock(mutex_);
    const std::shared_ptr<KeptLog> log = hold_.settle();
    sealed_bytes_ -= log->held_bytes;
    if (log->epoch > 0 && hold_.failure().ok()) settled_epoch_ = log->epoch;
  }
  std::unique_lock lock(mutex_);
  tell_hold(lock, true);
}

void Tap::broke(size_t disk, const Status& why) {
  std::unique_lock lock(mutex_);
  hold_.break_disk(disk, why);
  tell_hold(lock, true);
}

void Tap::let_go() {
  std::unique_lock lock(mutex_);
  hold_.let_go();
  tell_hold(lock, false);
}

void Tap::taken_back() {
  std::unique_lock lock(mutex_);
  hold_.take_back();
  tell_hold(lock, false);
}

void Tap::drained() {
  std::unique_lock lock(mutex_);
  if (hold_.state() == Hold::State::draining) hold_.drain();
  tell_hold(lock, true);
}

void Tap::end_settling() {
  std::unique_lock lock(mutex_);
  hold_.end();
  tell_hold(lock, false);
}

}  // namespace remusd::disk
