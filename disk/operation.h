// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <liburing.h>

#include <cstddef>

#include "ckpt/ring.h"

namespace remusd::disk {

/// Something that the kernel does for us, and that hears how it went. It may not move or go away meanwhile.
class Operation {
 public:
  virtual ~Operation() = default;
  /// `result`: as of the system call of that name, or a negative errno value.
  virtual void completed(int result) = 0;
};

/// One whose completion is a call of its owner.
template <typename Owner, void (Owner::*kMethod)(int)>
class Calls final : public Operation {
 public:
  explicit Calls(Owner* owner) : owner_(owner) {}
  void completed(int result) override { (owner_->*kMethod)(result); }

 private:
  Owner* owner_;
};

/// The ring of one thread, and what it waits for. REQUIRES of its user: no more operations at once than
/// kMostAtOnce, so that their completions always have a place.
class OperationRing {
 public:
  static constexpr unsigned kEntries = 1024, kMostAtOnce = 2 * kEntries;

  /// On the thread that uses it.
  Status open() { return ring_.open_for_this_thread(kEntries); }

  /// An entry to fill; `operation` hears of it. It is handed over by wait() at the latest.
  template <typename Fill>
  void start(Operation* operation, Fill fill) {
    if (ring_.room() == 0) must(ring_.submit());
    io_uring_sqe* entry = ring_.prepare();
    fill(entry);
    io_uring_sqe_set_data(entry, operation);
    ++waited_for_;
    REMUSD_ASSERT(waited_for_ <= kMostAtOnce, "operations are bounded");
  }
  /// So many have not completed.
  size_t waited_for() const { return waited_for_; }

  /// Hands over what was started, waits until something has completed or `timeout` has passed, and tells
  /// those whose operations have.
  void wait(Duration timeout) {
    must(ring_.submit_and_wait(timeout));
    ring_.reap([this](uint64_t user_data, int result) {
      --waited_for_;
      reinterpret_cast<Operation*>(user_data)->completed(result);  // NOLINT(performance-no-int-to-ptr)
    });
  }

 private:
  static void must(const Status& status) {
    REMUSD_ASSERT(status.ok(), "a ring that could be set up takes valid entries");
  }

  ckpt::Ring ring_;
  size_t waited_for_ = 0;
};

}  // namespace remusd::disk
