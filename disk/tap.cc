// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/tap.h"

#include <utility>

#include "ckpt/status.h"

namespace remusd::disk {

/// A change larger than the bound is taken alone.
bool Tap::has_room(const Change& change) const {
  const uint64_t overlay = hold_.has(change.disk) ? Overlay::kMostCost : 0;
  return held_bytes() == 0 || held_bytes() + open_->log.cost(change) + overlay <= limit_bytes_;
}

bool Tap::changing(const Change& change, std::span<const std::byte> data) {
  // Held disks are the same for both hosts.
  if (gate_ != nullptr && !hold_.has(change.disk) && !gate_->touch(change)) return false;
  const std::lock_guard lock(mutex_);
  const bool held = hold_.has(change.disk);
  const bool keeps = held && hold_.keeps(), refuses = held && hold_.broken(change.disk);
  fate_ = refuses ? Fate::refuse : keeps ? Fate::keep : Fate::make;
  if (refuses) {
    under_way_.emplace(change.sequence, Way::kept);
    return true;
  }
  if (held && hold_.waits()) {
    waiting_ = true;
    return false;
  }
  const bool logs = keeps || (!held && mode_ == Mode::logging);
  if (logs) {
    if (!has_room(change) && !pausing_) {
      if (!waiting_) ++stats_.waits;
      waiting_ = true;
      return false;
    }
    const std::byte* const content = open_->log.add(change, data);
    if (keeps) hold_.keep(change, content, open_->number);
    stats_.written_bytes += change.bytes;
  } else {
    ++unlogged_;
    if (held) hold_.pass();
    if (mark_) mark_(change);
  }
  if (follow_) follow_(change);
  newest_change_ = change.sequence;
  under_way_.emplace(change.sequence, keeps ? Way::kept : logs ? Way::logged : Way::passes);
  return true;
}

Fate Tap::fate(const Change&) {
  return fate_;
}

void Tap::changed(const Change& change, int error) {
  if (error != 0 && gate_ != nullptr && !hold_.has(change.disk)) gate_->failed(change);
  const std::lock_guard lock(mutex_);
  const auto one = under_way_.find(change.sequence);
  REMUSD_ASSERT(one != under_way_.end(), "what is done has begun");
  const Way way = one->second;
  under_way_.erase(one);
  if (follow_) follow_(change);
  if (way != Way::passes) return;
  --unlogged_;
  if (hold_.has(change.disk)) {
    hold_.passed();
    changed_.notify_all();
  }
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
  heard_ = true;
  settled_epoch_ = 0;
  hold_.begin();
  may_write_ = hold_.may_write();
}

TapPosition Tap::position() const {
  const std::lock_guard lock(mutex_);
  TapPosition position{last_sealed_ + 1, newest_change_, UINT64_MAX};
  if (!under_way_.empty()) position.oldest_under_way = under_way_.begin()->first;
  return position;
}

void Tap::follow(std::function<void(const Change& change)> follow) {
  const std::lock_guard lock(mutex_);
  follow_ = std::move(follow);
}

bool Tap::await_acked(uint64_t epoch, Time deadline) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [&] { return mode_ != Mode::logging || acked_ >= epoch; });
  return mode_ == Mode::logging && acked_ >= epoch;
}

bool Tap::await_room(Time deadline) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, deadline, [this] {
    return mode_ != Mode::logging || sealed_.empty() || held_bytes() < limit_bytes_;
  });
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
    // Output is held from just before the first pause on.
    if (mode_ == Mode::logging) heard_ = false;
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
  close_open(epoch);
}

void Tap::close_open(uint64_t epoch) {
  if (open_->log.empty()) return;
  open_->epoch = epoch;
  open_->held_bytes = open_->log.held_bytes();
  sealed_bytes_ += open_->held_bytes;
  sealed_.push_back(std::exchange(open_, std::make_shared<KeptLog>()));
  open_->number = sealed_.back()->number + 1;
}

bool Tap::next(uint64_t epoch, ckpt::Bytes* out, uint64_t* raw_bytes) {
  std::shared_ptr<KeptLog> found;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& sealed : sealed_)
      if (sealed->epoch == epoch) found = sealed;
  }
  // Without the lock: compressing takes its time, and nobody else looks into a sealed log.
  if (found == nullptr || !found->log.take(&body_, out, raw_bytes, hold_.disks())) return false;
  found->raw_bytes += *raw_bytes;
  return true;
}

void Tap::acked(uint64_t epoch) {
  bool retry = false;
  {
    const std::lock_guard lock(mutex_);
    const uint64_t before = sealed_bytes_;
    while (!sealed_.empty() && sealed_.front()->epoch <= epoch) {
      std::shared_ptr<KeptLog> log = std::move(sealed_.front());
      sealed_.pop_front();
      stats_.committed_bytes += log->raw_bytes;
      if (log->log.touches(hold_.disks())) {
        hold_.give(std::move(log));
      } else {
        sealed_bytes_ -= log->held_bytes;
      }
    }
    retry = sealed_bytes_ != before && take_waiting();
    acked_ = epoch;
  }
  changed_.notify_all();
  if (retry) retry_();
}

void Tap::off() {
  bool retry = false;
  {
    const std::lock_guard lock(mutex_);
    // The next session must not take for granted what an earlier one has logged and is still under way.
    for (auto& [sequence, way] : under_way_) {
      if (way == Way::logged) {
        way = Way::passes;
        ++unlogged_;
      }
    }
    mode_ = Mode::off;
    mark_ = nullptr;
    pausing_ = false;
    hold_.freeze();
    may_write_ = hold_.may_write();
    if (!hold_.keeps()) {
      for (const auto& log : sealed_) sealed_bytes_ -= log->held_bytes;
      sealed_.clear();
      const uint64_t number = open_->number;
      open_ = std::make_shared<KeptLog>();
      open_->number = number;
    }
    retry = take_waiting();
  }
  changed_.notify_all();
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
