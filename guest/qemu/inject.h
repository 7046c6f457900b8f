// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Running system calls inside another process, from outside, with ptrace.
//
//   running --SEIZE, INTERRUPT--> trapped --call()--> after a call --INTERRUPT--> trapped --restore,
//   DETACH--> running
//
// Only the main thread is stopped; the others run on. What always holds:
//
// * Registers are restored only in the interrupt trap, which lies inside the kernel's signal handling before
// it decides
//   about restarting: an interrupted system call is thus restarted, or ended by a signal handler with EINTR,
//   by the kernel's own rules, as if we had not been there. (Rewinding by hand would lose the wake-up of a
//   pause() whose signal came while we held the thread.)
// * Signals are blocked while we hold the thread and stay pending for it; those that cannot be blocked are
// passed on.
// * A process that was stopped (SIGSTOP) is stopped again when we leave; the kernel sees to that.
// * Floating-point and vector state is never touched.
//
// If this process is killed between the first call() and the end of run_in_process(), some 100 us, the other
// one goes on with our registers and most likely crashes: there is no way around that with ptrace.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>

#include "ckpt/status.h"

namespace remusd::guest::qemu {

/// The stopped main thread of a process; exists only inside run_in_process() and on its thread.
class Injector {
 public:
  virtual ~Injector() = default;
  /// Makes the process run one system call and returns its raw result (-errno on failure). It must be one
  /// that does not block. Fails with `unavailable` when the process ends meanwhile, with `timed_out` past the
  /// deadline.
  virtual Result<int64_t> call(long number, const std::array<uint64_t, 6>& arguments) = 0;
};

inline constexpr std::chrono::milliseconds kInjectDeadline{2000};

/// Stops the main thread of `pid`, runs `body`, restores the thread and lets it go; returns body's status, or
/// why the process could not be stopped: `not_found`, `denied` (names the right that is missing, or the
/// sandbox), `unavailable` (traced by another process, or ended), `timed_out`, `unsupported` (not a 64-bit
/// x86 process).
///
/// `body` runs on a thread of its own named "inject": it is the tracer, and its end releases the process
/// whatever happened. `deadline` holds for each wait. While this runs nobody else in this process may wait()
/// for `pid`, they could take the stop away; an exit of our own child is left for its owner to reap.
Status run_in_process(int pid, std::chrono::milliseconds deadline,
                      const std::function<Status(Injector&)>& body);

}  // namespace remusd::guest::qemu
