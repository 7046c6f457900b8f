// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sched.h>

#include <vector>

#include "ckpt/scoped_fd.h"

namespace remusd::guest::qemu {

/// In a pause QEMU's main thread saves the devices while the epoch thread copies pages. The two wake each
/// other, so the kernel likes to keep both on one processor, and on a host with few of them does not look
/// whether another is idle: then one waits for the other. The processor of the vCPU is idle, for the vCPU
/// stands. While this lives the epoch thread works there, and QEMU's main thread and its monitors' elsewhere;
/// and with them our thread that serves its disks: QEMU flushes them in each pause, and the answer comes
/// soonest from a processor that is awake.
/// A vCPU that computes without end would be displaced by a thread of the usual class at the next tick only
/// (4 ms, seen at p99): the epoch thread is a real-time one (SCHED_FIFO, the least priority), where it may.
class Placement {
 public:
  Placement() = default;
  /// Of process `pid`, with a thread of ours that serves it (0: none) and outlives this. Nothing happens
  /// until the first stand_apart().
  explicit Placement(int pid, int server = 0);
  /// Lets all threads go where they might before; our own when it is the one that ends this.
  ~Placement();
  Placement(Placement&& other) noexcept;
  Placement& operator=(Placement&& other) noexcept;

  /// From the epoch thread, between two pauses: goes after a vCPU that was moved. Best effort: where threads
  /// may use one processor only, or QEMU does not name its threads, all stays as it is.
  void stand_apart();
  bool stands_apart() const { return ours_ >= 0; }
  /// Where QEMU's main thread ran last, apart from the epoch thread; -1: nowhere apart.
  int main_processor() const;

 private:
  struct Thread {
    int id = 0;
    cpu_set_t allowed{};  // before
  };
  bool remember();

  int pid_ = 0, server_ = 0;
  ScopedFd vcpu_, main_;         // their stat
  std::vector<Thread> threads_;  // QEMU's, its server, and last the epoch thread
  int ours_ = -1;                // the epoch thread's processor
};

}  // namespace remusd::guest::qemu
