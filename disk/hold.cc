// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/hold.h"

#include <utility>

namespace remusd::disk {

void Hold::begin() {
  REMUSD_ASSERT(state_ == State::passing || state_ == State::lost, "one hold ends before the next begins");
  if (disks_ != 0 && state_ == State::passing) state_ = State::keeping;
}

void Hold::freeze() {
  if (state_ == State::keeping) state_ = State::frozen;
}

void Hold::win() {
  if (keeps()) state_ = State::draining;
}

Hold::Chore Hold::chore() const {
  if ((state_ == State::frozen || state_ == State::lost) && !gone_) return Chore::let_go;
  // Where the locks are not to be had again nothing can be written either.
  if (ending_ && (state_ != State::draining || gone_)) return Chore::end;
  if (!may_write()) return Chore::wait;
  if (gone_) return Chore::take_back;
  if (passing_ > 0) return Chore::wait;
  if (!logs_.empty()) return Chore::write;
  return state_ == State::draining ? Chore::done : Chore::wait;
}

std::shared_ptr<KeptLog> Hold::settle() {
  std::shared_ptr<KeptLog> log = std::move(logs_.front());
  logs_.pop_front();
  const Status taken = log->log.each(sound(), [&](const Change& run, const std::byte*) {
    overlay_.take_out(run.disk, run.offset, run.bytes, log->number);
    return Status();
  });
  REMUSD_ASSERT(taken.ok(), "taking out of memory does not fail");
  if (log->log.touches(broken_)) stuck_.push_back(log);
  return log;
}

void Hold::break_disk(size_t disk, const Status& why) {
  broken_ |= uint32_t{1} << disk;
  if (failure_.ok()) failure_ = why;
}

}  // namespace remusd::disk
