// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a system call that our stop interrupted must seem to have returned, so that the kernel restarts it.
#pragma once

#include <sys/syscall.h>

#include <cerrno>
#include <cstdint>

namespace remusd::guest::qemu {

/// The kernel's internal "restart unless a handler runs" (include/linux/errno.h); never seen by user code.
inline constexpr int64_t kRestartNoHandler = 514;

/// `rax` as it must be restored for a thread that was trapped with these registers.
///
/// Most interrupted calls hold one of the kernel's restart codes and stay as they are: the kernel acts on
/// them. A few (signal(7), "Interruption of system calls by stop signals") give up with EINTR although no
/// handler ran; they changed nothing, so they are made to restart. A finite timeout of theirs begins anew. In
/// the trap, EINTR with a call number means that no handler ran: running one, and returning from it, both
/// replace these registers.
inline uint64_t restart_value(uint64_t orig_rax, uint64_t rax) {
  if (static_cast<int64_t>(rax) != -EINTR) return rax;
  switch (static_cast<int64_t>(orig_rax)) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case 441:  // epoll_pwait2
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_io_getevents:
    case SYS_rt_sigtimedwait:
      return static_cast<uint64_t>(-kRestartNoHandler);
    default:
      return rax;
  }
}

}  // namespace remusd::guest::qemu
