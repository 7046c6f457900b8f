// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "backup/session.h"

namespace remusd::control {

/// Where a backup session lives: made before the session is, so that its callbacks have something to refer
/// to, and emptied after its end. Thread-safe.
class SessionSlot {
 public:
  explicit SessionSlot(uint64_t slot_id) : id(slot_id) {}
  const uint64_t id;

  std::shared_ptr<backup::Session> session() const {
    const std::lock_guard lock(mutex_);
    return session_;
  }
  void put(std::shared_ptr<backup::Session> session) {
    const std::lock_guard lock(mutex_);
    session_ = std::move(session);
  }
  /// Empties the slot. Never from a callback of the session: dropping the result may join its thread.
  std::shared_ptr<backup::Session> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(session_, nullptr);
  }

  backup::Snapshot last() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }
  void set_last(const backup::Snapshot& snapshot) {
    const std::lock_guard lock(mutex_);
    last_ = snapshot;
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<backup::Session> session_;
  backup::Snapshot last_;
};

}  // namespace remusd::control
