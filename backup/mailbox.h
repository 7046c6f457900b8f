// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What other threads tell the receive thread. It is served whether or not the link is open: after the link
// is lost there is still the arbiter to hear, and an operator.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "arbiter/arbiter.h"
#include "ckpt/clock.h"

namespace remusd::backup {

/// At most one of each is of interest: the first order, the first end, the one answer under way.
struct Mail {
  bool failover = false, switchover = false, force = false;
  std::optional<std::string> end;
  std::optional<arbiter::Answer> answer;
  std::optional<Status> fenced, loaded;
  bool empty() const { return !failover && !switchover && !force && !end && !answer && !fenced && !loaded; }
};

/// Thread-safe. `wake` gets the receive thread out of Link::wait().
class Mailbox {
 public:
  explicit Mailbox(std::function<void()> wake) : wake_(std::move(wake)) {}

  void order_failover() {
    post([](Mail& mail) { mail.failover = true; });
  }
  void order_switchover() {
    post([](Mail& mail) { mail.switchover = true; });
  }
  void force() {
    post([](Mail& mail) { mail.force = true; });
  }
  void end(const std::string& reason) {
    post([&](Mail& mail) {
      if (!mail.end) mail.end = reason;
    });
  }
  void answer(arbiter::Answer answer) {
    post([&](Mail& mail) { mail.answer = std::move(answer); });
  }
  void fenced(const Status& outcome) {
    post([&](Mail& mail) { mail.fenced = outcome; });
  }
  void loaded(const Status& outcome) {
    post([&](Mail& mail) { mail.loaded = outcome; });
  }

  /// Everything posted since the last call.
  Mail take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(mail_, {});
  }
  /// Sleeps until there is mail or `deadline`; for when there is no link to wait on.
  void wait(Time deadline) {
    std::unique_lock lock(mutex_);
    const auto arrived = [&] { return !mail_.empty(); };
    if (deadline == Time::max()) {
      changed_.wait(lock, arrived);
    } else {
      changed_.wait_until(lock, deadline, arrived);
    }
  }

 private:
  template <typename Change>
  void post(Change&& change) {
    {
      const std::lock_guard lock(mutex_);
      change(mail_);
    }
    changed_.notify_one();
    wake_();
  }

  std::function<void()> wake_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Mail mail_;
};

}  // namespace remusd::backup
