// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/inquiry.h"

namespace remusd::disk {
namespace {

/// A backup reads up to 16 MiB for an answer, and may be busy with what was sent before.
constexpr Duration kPatience = std::chrono::seconds(60);

}  // namespace

void Inquiry::ask(const ckpt::DiskAsk& ask) {
  {
    const std::lock_guard lock(mutex_);
    REMUSD_ASSERT(under_way_ < kMaxAsked, "so many are asked at once");
    ++under_way_;
    to_send_.push_back(ask);
  }
  wake_();
}

Status Inquiry::answer(ckpt::Bytes* body, ckpt::DiskTell* tell) {
  {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [this] { return stop_ || !answers_.empty(); }))
      return {Code::timed_out, "the backup does not tell what its disks hold"};
    if (stop_) return {Code::unavailable, "the session ended"};
    *body = std::move(answers_.front());
    answers_.pop_front();
    --under_way_;
  }
  return ckpt::decode(*body, tell);
}

bool Inquiry::next(ckpt::Bytes* out) {
  const std::lock_guard lock(mutex_);
  if (to_send_.empty()) return false;
  ckpt::encode(to_send_.front(), out);
  to_send_.pop_front();
  return true;
}

Status Inquiry::told(ckpt::View body) {
  {
    const std::lock_guard lock(mutex_);
    if (answers_.size() + to_send_.size() >= under_way_)
      return {Code::corrupt, "the backup tells of its disks without being asked"};
    answers_.emplace_back(body.begin(), body.end());
  }
  changed_.notify_all();
  return {};
}

void Inquiry::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

bool Inquiry::idle() const {
  const std::lock_guard lock(mutex_);
  return under_way_ == 0;
}

bool Inquiry::stopped() const {
  const std::lock_guard lock(mutex_);
  return stop_;
}

}  // namespace remusd::disk
