// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/ring.h"

#include <algorithm>
#include <chrono>
#include <string>

namespace remusd::ckpt {
namespace {

/// What a later call makes good: a signal, the time running out, completions that wait to be reaped.
bool passes(int error) {
  return error == EINTR || error == ETIME || error == EAGAIN || error == EBUSY;
}

}  // namespace

Ring::~Ring() {
  if (open_) io_uring_queue_exit(&ring_);
}

Status Ring::open(unsigned entries) {
  // Without flags: the thread that sets a connection up need not be the one that serves it, and who closes it
  // need not be either (docs/performance.md tells what IORING_SETUP_DEFER_TASKRUN would bring).
  return open_with(entries, {0});
}

Status Ring::open_for_this_thread(unsigned entries) {
  return open_with(entries,
                   {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0});
}

Status Ring::open_with(unsigned entries, std::initializer_list<unsigned> flags) {
  REMUSD_ASSERT(!open_, "a ring is opened once");
  int result = -EINVAL;
  for (const unsigned* next = flags.begin(); result == -EINVAL && next != flags.end(); ++next)
    result = io_uring_queue_init(entries, &ring_, *next);
  if (result < 0) {
    if (result == -ENOSYS || result == -EPERM) {
      return {Code::unsupported,
              "set up io_uring: " + Status::from_errno("io_uring_setup", -result).message() +
                  "; it needs Linux 5.11 or newer, and sysctl kernel.io_uring_disabled must be 0"};
    }
    return Status::from_errno("set up io_uring", -result);
  }
  open_ = true;
  if ((ring_.features & IORING_FEAT_EXT_ARG) == 0)
    return {Code::unsupported,
            "set up io_uring: this kernel cannot wait with a timeout; it needs Linux 5.11 or newer"};
  return {};
}

io_uring_sqe* Ring::prepare() {
  io_uring_sqe* entry = io_uring_get_sqe(&ring_);
  REMUSD_ASSERT(entry != nullptr, "the ring has an entry for each operation of its owner");
  return entry;
}

Status Ring::submit() {
  ++system_calls_;
  const int result = io_uring_submit(&ring_);
  if (result < 0 && !passes(-result)) return Status::from_errno("submit to io_uring", -result);
  return {};
}

Status Ring::submit_and_wait(Duration timeout) {
  const auto ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::max(timeout, Duration::zero())).count();
  __kernel_timespec limit{};
  limit.tv_sec = ns / 1'000'000'000;
  limit.tv_nsec = ns % 1'000'000'000;
  io_uring_cqe* completion = nullptr;
  ++system_calls_;
  const int result = io_uring_submit_and_wait_timeout(&ring_, &completion, 1, &limit, nullptr);
  if (result < 0 && !passes(-result)) return Status::from_errno("wait on io_uring", -result);
  return {};
}

}  // namespace remusd::ckpt
