// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/tap.h"

#include <utility>

#include "ckpt/status.h"

namespace remusd::disk {

bool Tap::changing(const Change& change, std::span<const std::byte> data) {
  if (gate_ != nullptr && !gate_->touch(change)) return false;
  const std::lock_guard lock(mutex_);
  if (mode_ == Mode::logging) {
    // A change larger than the bound is taken alone.
    const bool room = held_bytes() == 0 || held_bytes() + open_.cost(change) <= limit_bytes_;
    if (!room && !pausing_) {
      if (!waiting_) ++stats_.waits;
      waiting_ = true;
      return false;
    }
    open_.add(change, data);
    stats_.written_bytes += change.bytes;
  } else {
    ++unlogged_;
    if (mark_) mark_(change);
  }
  if (watch_) watch_(change);
  newest_change_ = change.sequence;
  under_way_.emplace(change.sequence, mode_ == Mode::logging);
  return true;
}

void Tap::changed(const Change& change) {
  const std::lock_guard lock(mutex_);
  const auto one = under_way_.find(change.sequence);
  REMUSD_ASSERT(one != under_way_.end(), "what is done has begun");
  const bool logged = one->second;
  under_way_.erase(one);
  if (watch_) watch_(change);
  if (logged) return;
  --unlogged_;
  // It may have been copied between its beginning and now.
  if (mark_) mark_(change);
}

bool Tap::flush_held() {
  const std::lock_guard lock(mutex_);
  return holds_flushes_;
}

void Tap::hold_flushes() {
  const std::lock_guard lock(mutex_);
  holds_flushes_ = true;
}

void Tap::let_flushes() {
  {
    const std::lock_guard lock(mutex_);
    holds_flushes_ = false;
  }
  if (retry_) retry_();
}

bool Tap::flush_may_wait() {
  const std::lock_guard lock(mutex_);
  if (!pausing_) return false;
  ++stats_.flushes_later;
  return true;
}

void Tap::flushed_later(int error) {
  const std::lock_guard lock(mutex_);
  if (error != 0) stats_.flush_error = error;
}

void Tap::mark(std::function<void(const Change& change)> mark) {
  const std::lock_guard lock(mutex_);
  REMUSD_ASSERT(mode_ == Mode::off, "protection begins with marking");
  mode_ = Mode::marking;
  mark_ = std::move(mark);
}

void Tap::log() {
  const std::lock_guard lock(mutex_);
  if (mode_ == Mode::off) return;  // It has ended meanwhile.
  REMUSD_ASSERT(mode_ == Mode::marking, "the disks are copied before changes are logged");
  mode_ = Mode::logging;
  last_sealed_ = acked_ = 0;
}

TapPosition Tap::position() const {
  const std::lock_guard lock(mutex_);
  TapPosition position{last_sealed_ + 1, newest_change_, UINT64_MAX};
  if (!under_way_.empty()) position.oldest_under_way = under_way_.begin()->first;
  return position;
}

void Tap::watch(std::function<void(const Change& change)> watch) {
  const std::lock_guard lock(mutex_);
  watch_ = std::move(watch);
}

bool Tap::await_acked(uint64_t epoch, Time deadline) const {
  std::unique_lock lock(mutex_);
  acked_changed_.wait_until(lock, deadline, [&] { return mode_ != Mode::logging || acked_ >= epoch; });
  return mode_ == Mode::logging && acked_ >= epoch;
}

uint64_t Tap::unlogged() const {
  const std::lock_guard lock(mutex_);
  return unlogged_;
}

/// What waited may be asked for again. mutex_ is held; the caller calls retry_ after it.
bool Tap::take_waiting() {
  return std::exchange(waiting_, false) && retry_ != nullptr;
}

void Tap::pausing() {
  bool retry = false;
  {
    const std::lock_guard lock(mutex_);
    pausing_ = true;
    retry = take_waiting();
  }
  if (retry) retry_();
}

void Tap::resumed() {
  const std::lock_guard lock(mutex_);
  pausing_ = false;
}

void Tap::seal(uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (mode_ != Mode::logging) return;  // It has ended meanwhile.
  REMUSD_ASSERT(epoch == last_sealed_ + 1, "epochs are sealed in order");
  last_sealed_ = epoch;
  if (open_.empty()) return;
  auto sealed = std::make_shared<Sealed>();
  sealed->epoch = epoch;
  sealed->held_bytes = open_.held_bytes();
  sealed->log = std::exchange(open_, EpochLog());
  sealed_bytes_ += sealed->held_bytes;
  sealed_.push_back(std::move(sealed));
}

bool Tap::next(uint64_t epoch, ckpt::Bytes* out, uint64_t* raw_bytes) {
  std::shared_ptr<Sealed> found;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& sealed : sealed_)
      if (sealed->epoch == epoch) found = sealed;
  }
  // Without the lock: compressing takes its time, and nobody else looks into a sealed log.
  if (found == nullptr || !found->log.take(&body_, out, raw_bytes)) return false;
  found->raw_bytes += *raw_bytes;
  return true;
}

void Tap::acked(uint64_t epoch) {
  bool retry = false;
  {
    const std::lock_guard lock(mutex_);
    const bool any = !sealed_.empty() && sealed_.front()->epoch <= epoch;
    while (!sealed_.empty() && sealed_.front()->epoch <= epoch) {
      sealed_bytes_ -= sealed_.front()->held_bytes;
      stats_.committed_bytes += sealed_.front()->raw_bytes;
      sealed_.pop_front();
    }
    retry = any && take_waiting();
    acked_ = epoch;
  }
  acked_changed_.notify_all();
  if (retry) retry_();
}

void Tap::off() {
  bool retry = false;
  {
    const std::lock_guard lock(mutex_);
    // The next session must not take for granted what an earlier one has logged and is still under way.
    for (auto& [sequence, logged] : under_way_) logged = false;
    unlogged_ = under_way_.size();
    mode_ = Mode::off;
    mark_ = nullptr;
    pausing_ = false;
    open_ = EpochLog();
    sealed_.clear();
    sealed_bytes_ = 0;
    retry = take_waiting();
  }
  acked_changed_.notify_all();
  if (retry) retry_();
}

TapStats Tap::stats() const {
  const std::lock_guard lock(mutex_);
  TapStats now = stats_;
  now.held_bytes = held_bytes();
  now.limit_bytes = limit_bytes_;
  return now;
}

}  // namespace remusd::disk
