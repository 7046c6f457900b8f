// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sched.h>

#include "ckpt/scoped_fd.h"

namespace remusd::guest::qemu {

/// In a pause QEMU's main thread saves the devices while the epoch thread copies pages. The two wake each
/// other, so the kernel likes to keep both on one processor, and on a host with few of them does not look
/// whether another is idle, as that of the halted vCPU is: then one waits for the other. While this lives,
/// the epoch thread stays away from where QEMU's main thread was last seen.
class Placement {
 public:
  Placement() = default;
  /// Of process `pid`. Nothing happens until the first stand_apart().
  explicit Placement(int pid);
  /// Lets the thread go where it might before, when it is the one that ends this.
  ~Placement();
  Placement(Placement&& other) noexcept;
  Placement& operator=(Placement&& other) noexcept;

  /// From the epoch thread, between two pauses. Best effort: where the thread may use one processor only, or
  /// it cannot be told where the other is, all stays as it is.
  void stand_apart();
  bool stands_apart() const { return avoided_ >= 0; }

 private:
  /// The processor on which QEMU's main thread ran last, or -1.
  int main_processor() const;

  ScopedFd stat_;
  int thread_ = 0;  // which stands apart
  int avoided_ = -1;
  cpu_set_t allowed_{};  // before
};

}  // namespace remusd::guest::qemu
