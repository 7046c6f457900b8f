// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <liburing.h>

#include <cstdint>
#include <initializer_list>

#include "ckpt/clock.h"
#include "ckpt/status.h"

namespace remusd::ckpt {

/// Owns one io_uring. Not thread-safe. The owner must have seen every operation complete before it frees the
/// memory that the operation uses, and before this is destroyed.
class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  /// `unsupported` when the kernel has no io_uring or forbids it.
  Status open(unsigned entries);
  /// For a ring that only the calling thread uses, and that it closes, too: the kernel then does a ring's
  /// work only when its owner waits (Linux 6.1), or at least does not interrupt it (5.19), where it can.
  Status open_for_this_thread(unsigned entries);
  /// System calls so far.
  uint64_t system_calls() const { return system_calls_; }
  /// An empty entry; the caller fills it and sets its user data after. REQUIRES: fewer than `entries` were
  /// prepared since the last submit (asserted).
  io_uring_sqe* prepare();
  /// So many more can be prepared before the next submit.
  unsigned room() const { return io_uring_sq_space_left(&ring_); }
  bool prepared() const { return io_uring_sq_ready(&ring_) > 0; }
  /// Hands over what was prepared without waiting.
  Status submit();
  /// Hands over what was prepared and waits for a completion or until `timeout` has passed; the kernel looks
  /// for completions once even when it is 0. One system call. A signal ends the wait early.
  Status submit_and_wait(Duration timeout);

  /// Calls on_completion(user_data, result) for each completion that is there, without a system call.
  template <typename Function>
  void reap(Function on_completion) {
    io_uring_cqe* completion = nullptr;
    while (io_uring_peek_cqe(&ring_, &completion) == 0 && completion != nullptr) {
      const uint64_t user_data = completion->user_data;
      const int result = completion->res;
      io_uring_cqe_seen(&ring_, completion);
      on_completion(user_data, result);
    }
  }

 private:
  Status open_with(unsigned entries, std::initializer_list<unsigned> flags);

  io_uring ring_{};
  uint64_t system_calls_ = 0;
  bool open_ = false;
};

}  // namespace remusd::ckpt
