// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Questions about the backup's disks and their answers, between a thread that may wait and the ship thread,
// which has the link. Answers come in the order of the questions.
//
// Bound: kMaxAsked questions are under way, so that no more answers are kept.
//
// Threads: ask and answer from one thread, next and told from the ship thread, stop from any.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>

#include "ckpt/clock.h"
#include "ckpt/disk_digest.h"

namespace remusd::disk {

class Inquiry {
 public:
  static constexpr size_t kMaxAsked = 2;

  /// `wake` is called, without a lock, when there is a question to send.
  explicit Inquiry(std::function<void()> wake) : wake_(std::move(wake)) {}

  /// REQUIRES: fewer than kMaxAsked are under way.
  void ask(const ckpt::DiskAsk& ask);
  /// Waits for the oldest answer. The record's data lie in *body. `timed_out` when nothing comes;
  /// `unavailable` once it is stopped.
  Status answer(ckpt::Bytes* body, ckpt::DiskTell* tell);
  /// The next question's body, at the end of *out.
  bool next(ckpt::Bytes* out);
  /// A DISK_TELL has come. `corrupt` when nobody has asked.
  Status told(ckpt::View body);
  void stop();
  bool stopped() const;
  /// Nothing is under way.
  bool idle() const;

 private:
  const std::function<void()> wake_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<ckpt::DiskAsk> to_send_;
  std::deque<ckpt::Bytes> answers_;
  size_t under_way_ = 0;  // asked, and not taken by answer()
  bool stop_ = false;
};

}  // namespace remusd::disk
