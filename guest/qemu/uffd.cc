// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/uffd.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>

#include "guest/qemu/inject.h"

namespace remusd::guest::qemu {
namespace {

constexpr uint64_t kProtectPieceBytes = 64ull << 20;
constexpr uint64_t kUffdFlags =
    O_CLOEXEC | O_NONBLOCK;  // not USER_MODE_ONLY: QEMU's system calls write RAM too
constexpr const char* kDevice = "/dev/userfaultfd";

/// Runs `make` in the process and fetches the descriptor it returns. Yields no descriptor when `make` was
/// refused with EPERM.
Result<ScopedFd> make_and_fetch(int pid, long number, const std::array<uint64_t, 6>& make) {
  const ScopedFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) {
    if (errno == ESRCH)
      return Status{Code::not_found, "track process " + std::to_string(pid) + ": no such process"};
    return Status::from_errno("open process " + std::to_string(pid));
  }
  ScopedFd fetched;
  REMUSD_TRY(run_in_process(pid, kInjectDeadline, [&](Injector& injector) -> Status {
    REMUSD_ASSIGN(const int64_t theirs, injector.call(number, make));
    if (theirs == -EPERM) return {};
    if (theirs == -ENOSYS) {
      return {Code::unsupported, "userfaultfd is not in this kernel (" + kernel_release() +
                                     "); tracking needs Linux 5.19 or later with CONFIG_USERFAULTFD"};
    }
    if (theirs < 0) {
      return Status::from_errno("userfaultfd in process " + std::to_string(pid), static_cast<int>(-theirs));
    }
    fetched.reset(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), theirs, 0)));
    const int error = errno;
    // Closed whether or not we got it: the last copy must be ours, so that our death frees the process.
    REMUSD_ASSIGN(const int64_t closed, injector.call(SYS_close, {static_cast<uint64_t>(theirs)}));
    if (!fetched) return Status::from_errno("fetch userfaultfd from process " + std::to_string(pid), error);
    if (closed != 0) {
      return Status::from_errno("close userfaultfd in process " + std::to_string(pid),
                                static_cast<int>(-closed));
    }
    return {};
  }));
  return fetched;
}

}  // namespace

Result<ScopedFd> fetch_userfaultfd(int pid, const std::function<Result<int>(int fd)>& give_fd) {
  REMUSD_ASSIGN(ScopedFd made, make_and_fetch(pid, SYS_userfaultfd, {kUffdFlags}));
  if (made) return made;

  const std::string who = "process " + std::to_string(pid) + " may not call userfaultfd";
  if (!give_fd) {
    return Status{Code::denied, who + "; set vm.unprivileged_userfaultfd=1, or give it CAP_SYS_PTRACE"};
  }
  const ScopedFd device(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (!device) {
    const int error = errno;
    return Status{Code::denied, who + " and remusd cannot open " + kDevice + " (" +
                                    Status::from_errno("open", error).message() +
                                    "); set vm.unprivileged_userfaultfd=1, or let remusd open that device"};
  }
  REMUSD_ASSIGN(const int theirs, give_fd(device.get()));
  REMUSD_ASSIGN(
      made, make_and_fetch(pid, SYS_ioctl, {static_cast<uint64_t>(theirs), USERFAULTFD_IOC_NEW, kUffdFlags}));
  if (!made) return Status{Code::denied, who + ", not even through " + kDevice};
  return made;
}

Result<bool> uffd_handshake(int uffd, uint64_t features) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (::ioctl(uffd, UFFDIO_API, &api) == 0) return true;
  if (errno == EINVAL) return false;
  return Status::from_errno("agree on features with userfaultfd");
}

Status uffd_register(int uffd, TrackedRange range) {
  uffdio_register order{};
  order.range = {range.address, range.bytes};
  order.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(uffd, UFFDIO_REGISTER, &order) != 0) {
    if (errno == EBUSY) {
      return {Code::exists,
              "this memory is tracked by a userfaultfd already (another remusd, or a background "
              "snapshot of QEMU); end that first"};
    }
    return Status::from_errno("register memory with userfaultfd");
  }
  if ((order.ioctls & (uint64_t{1} << _UFFDIO_WRITEPROTECT)) == 0) {
    uffd_unregister(uffd, range);
    return {Code::unsupported,
            "this kernel (" + kernel_release() +
                ") cannot write-protect shared memory; tracking needs Linux 5.19 or later"};
  }
  return {};
}

void uffd_unregister(int uffd, TrackedRange range) {
  uffdio_range order{range.address, range.bytes};
  static_cast<void>(::ioctl(uffd, UFFDIO_UNREGISTER, &order));
}

void uffd_wake(int uffd, TrackedRange range) {
  uffdio_range order{range.address, range.bytes};
  static_cast<void>(::ioctl(uffd, UFFDIO_WAKE, &order));
}

int uffd_protect(int uffd, TrackedRange range, bool on) {
  uffdio_writeprotect order{};
  order.range = {range.address, range.bytes};
  order.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  while (::ioctl(uffd, UFFDIO_WRITEPROTECT, &order) != 0) {
    // EAGAIN: the process is changing its mappings right now; that ends by itself.
    if (errno != EAGAIN && errno != EINTR) return errno;
    ::sched_yield();
  }
  return 0;
}

Status uffd_protect_all(int uffd, TrackedRange range) {
  for (uint64_t done = 0; done < range.bytes; done += kProtectPieceBytes) {
    const TrackedRange piece{range.address + done, std::min(kProtectPieceBytes, range.bytes - done)};
    if (const int error = uffd_protect(uffd, piece, true); error != 0) {
      return Status::from_errno("write-protect memory", error);
    }
  }
  return {};
}

bool memory_lives(int pagemap, uint64_t address) {
  // Reads nothing at all once the last user of the memory has gone, even while the process still is a zombie
  // or has a new program: /proc/PID/pagemap holds on to the memory it was opened for.
  uint64_t entry = 0;
  return ::pread(pagemap, &entry, sizeof entry, static_cast<off_t>(address / kPageSize * sizeof entry)) ==
         static_cast<ssize_t>(sizeof entry);
}

std::string kernel_release() {
  utsname name{};
  return ::uname(&name) == 0 ? name.release : "unknown";
}

}  // namespace remusd::guest::qemu
