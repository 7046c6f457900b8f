// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mutex>
#include <optional>
#include <string>

#include "arbiter/arbiter.h"

namespace remusd::primary {

/// In memory; can be cut off, or lose the race.
class FakeArbiter : public arbiter::Arbiter {
 public:
  Result<std::optional<arbiter::Record>> read(const std::string&, Time) override {
    const std::lock_guard lock(mutex_);
    if (down_) return Status(Code::unavailable, "arbiter down");
    return record_;
  }
  arbiter::Answer compare_and_swap(const std::string&, uint64_t expected, const arbiter::Record& desired,
                                   Time) override {
    const std::lock_guard lock(mutex_);
    ++requests_;
    arbiter::Answer answer;
    if (down_) {
      answer.why = Status(Code::unavailable, "arbiter down");
      return answer;
    }
    if ((record_ ? record_->generation : 0) == expected) {
      record_ = desired;
      answer.verdict = arbiter::Verdict::won;
    } else {
      answer.verdict = arbiter::Verdict::lost;
    }
    answer.current = record_;
    if (down_next_) down_ = true;
    if (!wins_next_.empty()) record_ = overtaken_by(wins_next_);
    down_next_ = false;
    wins_next_.clear();
    return answer;
  }
  std::string describe() const override { return "fake"; }

  void set_down(bool down) {
    const std::lock_guard lock(mutex_);
    down_ = down;
  }
  void let_win(const std::string& node) {
    const std::lock_guard lock(mutex_);
    record_ = overtaken_by(node);
  }
  /// The same once the next request was answered, so that nothing comes between.
  void down_after_next() {
    const std::lock_guard lock(mutex_);
    down_next_ = true;
  }
  void let_win_after_next(const std::string& node) {
    const std::lock_guard lock(mutex_);
    wins_next_ = node;
  }
  std::optional<arbiter::Record> record() {
    const std::lock_guard lock(mutex_);
    return record_;
  }
  int requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  arbiter::Record overtaken_by(const std::string& node) const {
    return {record_ ? record_->generation + 1 : 1, node, "boot", 0, "of " + node, ""};
  }

  std::mutex mutex_;
  bool down_ = false, down_next_ = false;
  std::string wins_next_;
  int requests_ = 0;
  std::optional<arbiter::Record> record_;
};

}  // namespace remusd::primary
