// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "netbuf/epoch_queue.h"

#include <algorithm>

#include "ckpt/status.h"

namespace remusd::netbuf {

EpochQueue::EpochQueue(size_t limit_bytes, size_t limit_frames)
    : limit_bytes_(limit_bytes), limit_frames_(limit_frames) {
  REMUSD_ASSERT(limit_bytes > 0 && limit_frames > 0, "a queue that can hold nothing would stop the guest");
}

bool EpochQueue::has_room(size_t bytes) const {
  return frames_.size() < limit_frames_ && bytes <= limit_bytes_ - bytes_;
}

bool EpochQueue::push(uint64_t epoch, Time now, std::span<const std::byte> frame) {
  REMUSD_ASSERT(epoch >= last_tag_, "epochs never go back while a gate is open");
  if (!has_room(frame.size())) return false;
  last_tag_ = epoch;
  frames_.push_back({epoch, now, {frame.begin(), frame.end()}});
  bytes_ += frame.size();
  REMUSD_ASSERT(bytes_ <= limit_bytes_, "held bytes are bounded");
  return true;
}

void EpochQueue::release_through(uint64_t epoch) {
  released_ = std::max(released_, epoch);
}

void EpochQueue::set_passing(bool passing) {
  passing_ = passing;
}

const EpochQueue::Frame* EpochQueue::front_released() const {
  if (frames_.empty()) return nullptr;
  const Frame& front = frames_.front();
  return passing_ || front.epoch <= released_ ? &front : nullptr;
}

void EpochQueue::pop() {
  REMUSD_ASSERT(front_released() != nullptr, "only a released frame leaves");
  bytes_ -= frames_.front().bytes.size();
  frames_.pop_front();
}

size_t EpochQueue::discard() {
  const size_t count = frames_.size();
  frames_.clear();
  bytes_ = 0;
  return count;
}

}  // namespace remusd::netbuf
