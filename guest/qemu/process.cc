// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "ckpt/thread.h"

namespace remusd::guest::qemu {
namespace {

constexpr size_t kMaxCommandLineBytes = size_t{1} << 20;
constexpr std::streamoff kLogTailBytes = 4096;
constexpr Duration kKillTimeout = std::chrono::seconds(10);

/// Undoes posix_spawn's own allocations on every way out.
struct SpawnPlan {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  SpawnPlan() {
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawnattr_init(&attributes);
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&files);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
};

}  // namespace

Result<Process> Process::spawn(const std::vector<std::string>& argv, const std::vector<int>& inherited,
                               const std::string& log_path) {
  REMUSD_ASSERT(!argv.empty(), "a program is named");
  ScopedFd log(::open(log_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600));
  if (!log) return Status::from_errno("open QEMU's log '" + log_path + "'");

  SpawnPlan plan;
  // High copies first: an inherited descriptor may itself stand at a number that is to be filled.
  std::vector<ScopedFd> copies;
  for (const int fd : inherited) {
    copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 64));
    if (!copies.back()) return Status::from_errno("copy a descriptor for QEMU");
  }
  ScopedFd log_copy(::fcntl(log.get(), F_DUPFD_CLOEXEC, 64));
  if (!log_copy) return Status::from_errno("copy a descriptor for QEMU");
  ::posix_spawn_file_actions_addopen(&plan.files, STDIN_FILENO, "/dev/null", O_RDWR, 0);
  ::posix_spawn_file_actions_adddup2(&plan.files, log_copy.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&plan.files, log_copy.get(), STDERR_FILENO);
  int next = STDERR_FILENO + 1;
  for (const ScopedFd& copy : copies) ::posix_spawn_file_actions_adddup2(&plan.files, copy.get(), next++);
  ::posix_spawn_file_actions_addclosefrom_np(&plan.files, next);

  sigset_t none, all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&plan.attributes, &none);
  ::posix_spawnattr_setsigdefault(&plan.attributes, &all);
  ::posix_spawnattr_setflags(&plan.attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<char*> pointers;
  pointers.reserve(argv.size() + 1);
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  pid_t pid = 0;
  const int error =
      ::posix_spawnp(&pid, argv[0].c_str(), &plan.files, &plan.attributes, pointers.data(), environ);
  if (error != 0) return Status::from_errno("start '" + argv[0] + "'", error);
  // An urgent thread of ours hands its priority down; the guest has that of the daemon.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(pid), own_nice());

  auto process = adopt(pid, log_path);
  if (!process.ok()) {  // Out of descriptors: do not leave a guest that nobody can end.
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  return process;
}

Result<Process> Process::adopt(int pid, const std::string& log_path) {
  Process process;
  process.log_path_ = log_path;
  process.pid_ = pid;
  process.pidfd_.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process.pidfd_) return Status::from_errno("watch process " + std::to_string(pid));
  return process;
}

bool Process::gone(Duration timeout) const {
  if (!pidfd_) return true;
  const Time deadline = Clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd entry{pidfd_.get(), POLLIN, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    siginfo_t info{};
    // Not our child (ECHILD), or reaped already: both are fine.
    (void)::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG);
    return true;
  }
}

Status Process::kill() const {
  if (gone(Duration::zero())) return {};
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), SIGKILL, nullptr, 0) != 0 && errno != ESRCH) {
    return Status::from_errno("kill QEMU process " + std::to_string(pid_));
  }
  if (gone(kKillTimeout)) return {};
  return {Code::timed_out, "QEMU process " + std::to_string(pid_) + " does not end although it was killed"};
}

std::string Process::last_words() const {
  std::ifstream file(log_path_, std::ios::ate | std::ios::binary);
  if (log_path_.empty() || !file) return {};
  file.seekg(std::max<std::streamoff>(0, static_cast<std::streamoff>(file.tellg()) - kLogTailBytes));
  std::string line, last;
  while (std::getline(file, line)) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
  }
  // "qemu-system-x86_64: what went wrong"
  const size_t colon = last.find(": ");
  if (last.starts_with("qemu") && colon != std::string::npos) last.erase(0, colon + 2);
  for (char& c : last) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  return last.substr(0, 400);
}

Result<std::vector<std::string>> command_line_of(int pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/cmdline";
  std::ifstream file(path, std::ios::binary);
  if (!file) return Status::from_errno("read '" + path + "'");
  std::vector<std::string> argv;
  std::string argument;
  size_t total = 0;
  while (std::getline(file, argument, '\0')) {
    total += argument.size() + 1;
    if (total > kMaxCommandLineBytes) return Status(Code::exhausted, "'" + path + "' is too long");
    argv.push_back(argument);
  }
  if (argv.empty()) return Status(Code::unavailable, "process " + std::to_string(pid) + " has ended");
  return argv;
}

}  // namespace remusd::guest::qemu
