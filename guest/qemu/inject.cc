// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/inject.h"

#include <elf.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/scoped_fd.h"
#include "ckpt/thread.h"
#include "guest/qemu/inject_restart.h"

namespace remusd::guest::qemu {
namespace {

using std::chrono::steady_clock;

std::string proc_path(int pid, const char* file) {
  return "/proc/" + std::to_string(pid) + "/" + file;
}

/// A number from /proc/PID/status; -1 when the line or the process is not there.
long status_field(int pid, const std::string& name) {
  std::ifstream file(proc_path(pid, "status"));
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::atol(line.c_str() + name.size() + 1);
  }
  return -1;
}

}  // namespace

#if defined(__x86_64__)

namespace {

constexpr uint64_t kUserCode64 = 0x33;  // the code segment of 64-bit user code
constexpr size_t kCodeScanBytes = 2 << 20;
constexpr std::array<unsigned char, 2> kSyscallInstruction{0x0f, 0x05};
constexpr long kSyscallStop = SIGTRAP | 0x80;  // with PTRACE_O_TRACESYSGOOD
constexpr int kSpinsBeforeSleep = 200;

/// The tracee as this thread, its tracer, sees it.
class Tracee final : public Injector {
 public:
  Tracee(int pid, std::chrono::milliseconds deadline) : pid_(pid), deadline_(deadline) {}

  Status attach();
  Status release();
  Result<int64_t> call(long number, const std::array<uint64_t, 6>& arguments) override;

 private:
  struct Stop {
    int signal;  // or kSyscallStop
    int event;
  };
  enum class Until { trap, syscall };

  Status trace(int request, uint64_t address, uint64_t data, const char* what) const {
    if (::ptrace(static_cast<__ptrace_request>(request), pid_, address, data) == 0) return {};
    if (errno == ESRCH) return ended(what);
    return Status::from_errno(name() + ": " + what);
  }
  Status ended(const char* what) const {
    return {Code::unavailable, name() + " ended during " + std::string(what)};
  }
  std::string name() const { return "process " + std::to_string(pid_); }

  Status get_registers(user_regs_struct* registers) const;
  Status set_registers(user_regs_struct registers) const;
  Result<Stop> wait_any();
  /// Waits for the given stop; `request` lets the thread run on through others, with their signal.
  Status wait_until(Until until, int request);
  Status find_instruction();
  bool holds_instruction(uint64_t address) const;

  const int pid_;
  const std::chrono::milliseconds deadline_;
  ScopedFd memory_;
  bool our_child_ = false;
  bool stopped_ = false;
  bool in_trap_ = false;  // in the interrupt trap, where restoring is right
  bool saved_valid_ = false;
  user_regs_struct saved_{};
  uint64_t saved_mask_ = 0;
  uint64_t instruction_ = 0;
};

Status Tracee::get_registers(user_regs_struct* registers) const {
  iovec vector{registers, sizeof *registers};
  REMUSD_TRY(trace(PTRACE_GETREGSET, NT_PRSTATUS, reinterpret_cast<uint64_t>(&vector), "reading registers"));
  if (vector.iov_len != sizeof *registers || registers->cs != kUserCode64) {
    return {Code::unsupported, name() + " does not run 64-bit x86 code; only such processes can be tracked"};
  }
  return {};
}

Status Tracee::set_registers(user_regs_struct registers) const {
  iovec vector{&registers, sizeof registers};
  return trace(PTRACE_SETREGSET, NT_PRSTATUS, reinterpret_cast<uint64_t>(&vector), "setting registers");
}

Result<Tracee::Stop> Tracee::wait_any() {
  const auto end = steady_clock::now() + deadline_;
  for (int spins = 0;; ++spins) {
    siginfo_t info{};
    const int options = WSTOPPED | WEXITED | WNOHANG | __WALL;
    // Looked at first and taken second: the exit of our own child belongs to whoever reaps it.
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, options | WNOWAIT) != 0) {
      if (errno == EINTR) continue;
      return Status::from_errno("wait for " + name() + " to stop");
    }
    if (info.si_pid == pid_) {
      const bool exited =
          info.si_code == CLD_EXITED || info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED;
      if (!exited || !our_child_) {
        siginfo_t taken{};
        static_cast<void>(::waitid(P_PID, static_cast<id_t>(pid_), &taken, options));
      }
      if (exited) return ended("tracing");
      stopped_ = true;
      return Stop{info.si_status & 0xff, (info.si_status >> 8) & 0xff};
    }
    if (steady_clock::now() >= end) {
      return Status{Code::timed_out, name() + " did not stop within " + std::to_string(deadline_.count()) +
                                         " ms; its main thread may be stuck in the kernel"};
    }
    if (spins < kSpinsBeforeSleep) {
      ::sched_yield();
    } else {
      ::usleep(50);
    }
  }
}

Status Tracee::wait_until(Until until, int request) {
  while (true) {
    REMUSD_ASSIGN(const Stop stop, wait_any());
    const bool trap = stop.event == PTRACE_EVENT_STOP;
    const bool syscall = stop.signal == kSyscallStop;
    if (trap && until == Until::trap) return {};
    if (syscall && until == Until::syscall) return {};
    // A stop or continue notice or a signal on its way to the thread: pass it on.
    const bool deliver = !trap && !syscall;
    stopped_ = false;
    REMUSD_TRY(trace(request, 0, deliver ? static_cast<uint64_t>(stop.signal) : 0, "passing a signal on"));
  }
}

bool Tracee::holds_instruction(uint64_t address) const {
  std::array<unsigned char, 2> bytes{};
  return ::pread(memory_.get(), bytes.data(), bytes.size(), static_cast<off_t>(address)) == 2 &&
         bytes == kSyscallInstruction;
}

Status Tracee::find_instruction() {
  if (const uint64_t before = saved_.rip - kSyscallInstruction.size();
      static_cast<int64_t>(saved_.orig_rax) >= 0 && holds_instruction(before)) {
    instruction_ = before;
    return {};
  }
  // The vdso has one for its fallbacks. Else any executable code: the bytes need not be meant as one.
  for (const bool vdso : {true, false}) {
    std::ifstream maps(proc_path(pid_, "maps"));
    std::vector<unsigned char> code;
    for (std::string line; std::getline(maps, line);) {
      uint64_t begin = 0, end = 0;
      char rights[5] = {};
      if (std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, rights) != 3 || rights[2] != 'x') continue;
      if ((line.find("[vdso]") != std::string::npos) != vdso) continue;
      code.resize(std::min<uint64_t>(end - begin, kCodeScanBytes));
      const ssize_t got = ::pread(memory_.get(), code.data(), code.size(), static_cast<off_t>(begin));
      if (got <= 0) continue;
      const auto stop = code.begin() + got;
      const auto found =
          std::search(code.begin(), stop, kSyscallInstruction.begin(), kSyscallInstruction.end());
      if (found == stop) continue;
      instruction_ = begin + static_cast<uint64_t>(found - code.begin());
      return {};
    }
  }
  return {Code::unsupported, name() + " has no system call instruction in its code"};
}

Status Tracee::attach() {
  our_child_ = status_field(pid_, "PPid") == ::getpid();
  if (::ptrace(PTRACE_SEIZE, pid_, 0, PTRACE_O_TRACESYSGOOD) != 0) {
    const int error = errno;
    if (error == ESRCH) return {Code::not_found, "trace " + name() + ": no such process"};
    if (const long tracer = status_field(pid_, "TracerPid"); tracer > 0) {
      return {Code::unavailable, "trace " + name() + ": process " + std::to_string(tracer) +
                                     " traces it already; detach that first"};
    }
    if (error == EPERM) {
      return {Code::denied, "trace " + name() +
                                ": no right to; run as its user with kernel.yama.ptrace_scope=0, or give "
                                "remusd CAP_SYS_PTRACE"};
    }
    return Status::from_errno("trace " + name(), error);
  }
  REMUSD_TRY(trace(PTRACE_INTERRUPT, 0, 0, "stopping it"));
  REMUSD_TRY(wait_until(Until::trap, PTRACE_CONT));
  in_trap_ = true;
  REMUSD_TRY(get_registers(&saved_));
  REMUSD_TRY(trace(PTRACE_GETSIGMASK, sizeof saved_mask_, reinterpret_cast<uint64_t>(&saved_mask_),
                   "reading its signal mask"));
  saved_valid_ = true;
  memory_ = ScopedFd(::open(proc_path(pid_, "mem").c_str(), O_RDONLY | O_CLOEXEC));
  if (!memory_) return Status::from_errno("open " + proc_path(pid_, "mem"));
  REMUSD_TRY(find_instruction());
  const uint64_t all = ~uint64_t{0};
  return trace(PTRACE_SETSIGMASK, sizeof all, reinterpret_cast<uint64_t>(&all), "blocking its signals");
}

Result<int64_t> Tracee::call(long number, const std::array<uint64_t, 6>& arguments) {
  REMUSD_ASSERT(stopped_, "a call starts from a stop");
  user_regs_struct registers = saved_;
  registers.rip = instruction_;
  registers.rax = static_cast<uint64_t>(number);
  registers.orig_rax = ~uint64_t{0};  // nothing to restart
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  registers.r10 = arguments[3];
  registers.r8 = arguments[4];
  registers.r9 = arguments[5];
  REMUSD_TRY(set_registers(registers));
  for (const char* step : {"entering a system call", "leaving a system call"}) {
    in_trap_ = false;
    stopped_ = false;
    REMUSD_TRY(trace(PTRACE_SYSCALL, 0, 0, step));
    REMUSD_TRY(wait_until(Until::syscall, PTRACE_SYSCALL));
    REMUSD_TRY(get_registers(&registers));
    if (registers.orig_rax != static_cast<uint64_t>(number)) {
      return Status{Code::io, name() + ": stopped in another system call than the one that was asked for"};
    }
  }
  return static_cast<int64_t>(registers.rax);
}

Status Tracee::release() {
  if (!saved_valid_) {
    if (stopped_) static_cast<void>(::ptrace(PTRACE_DETACH, pid_, 0, 0));
    return {};
  }
  if (!in_trap_) {
    REMUSD_TRY(trace(PTRACE_INTERRUPT, 0, 0, "stopping it"));
    if (stopped_) {
      stopped_ = false;
      REMUSD_TRY(trace(PTRACE_CONT, 0, 0, "letting it reach the trap"));
    }
    REMUSD_TRY(wait_until(Until::trap, PTRACE_CONT));
    in_trap_ = true;
  }
  user_regs_struct registers = saved_;
  registers.rax = restart_value(registers.orig_rax, registers.rax);
  REMUSD_TRY(set_registers(registers));
  REMUSD_TRY(trace(PTRACE_SETSIGMASK, sizeof saved_mask_, reinterpret_cast<uint64_t>(&saved_mask_),
                   "restoring its signal mask"));
  return trace(PTRACE_DETACH, 0, 0, "letting it go");
}

}  // namespace

Status run_in_process(int pid, std::chrono::milliseconds deadline,
                      const std::function<Status(Injector&)>& body) {
  if (pid <= 0 || status_field(pid, "Pid") != pid) {
    return {Code::not_found, "trace process " + std::to_string(pid) + ": no such process"};
  }
  if (status_field(pid, "Seccomp") > 0) {
    return {Code::denied, "process " + std::to_string(pid) +
                              " is confined by seccomp, which could kill it for a system call of ours; start "
                              "QEMU with -sandbox off"};
  }
  Status result;
  std::thread tracer([&] {
    begin_thread("inject", Urgency::urgent);
    Tracee tracee(pid, deadline);
    result = tracee.attach();
    if (result.ok()) result = body(tracee);
    // Always, so that the thread goes on; the first failure is the one that is told.
    if (Status released = tracee.release(); result.ok()) result = std::move(released);
  });
  tracer.join();
  return result;
}

#else

Status run_in_process(int pid, std::chrono::milliseconds, const std::function<Status(Injector&)>&) {
  return {Code::unsupported,
          "trace process " + std::to_string(pid) + ": only x86-64 is supported by this build"};
}

#endif

}  // namespace remusd::guest::qemu
