// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/fence.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "ckpt/scoped_fd.h"

namespace remusd::control {
namespace {

constexpr size_t kMaxWords = 400;  // of what it said, the last
constexpr int kLookMs = 50;

std::string input_of(const FenceAgent& agent) {
  std::string text;
  if (agent.options.count("action") == 0) text += "action=off\n";
  for (const auto& [name, value] : agent.options) text += name + "=" + value + "\n";
  return text;
}

// A file that is read from its beginning: an agent that does not read its input cannot make us wait.
Result<ScopedFd> make_input(const std::string& text) {
  ScopedFd file(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file) return Status::from_errno("make the fence agent's input");
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::lseek(file.get(), 0, SEEK_SET) != 0) {
    return Status::from_errno("write the fence agent's input");
  }
  return file;
}

Result<pid_t> spawn(const std::string& command, int input, int output) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_adddup2(&files, input, STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, output, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, output, STDERR_FILENO);
  // A group of its own, so that all of it can be ended; and no signal that we ignore.
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  ::posix_spawnattr_setsigdefault(&attributes, &defaults);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  const std::array<char*, 2> argv{const_cast<char*>(command.c_str()), nullptr};
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, command.c_str(), &files, &attributes, argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&files);
  if (error != 0) return Status::from_errno("run " + command, error);
  return pid;
}

/// Takes what it says until it says no more; false at `deadline` or when asked to stop.
bool listen_to(int output, Time deadline, const std::stop_token& stop, std::string* words) {
  while (Clock::now() < deadline && !stop.stop_requested()) {
    pollfd waiting{output, POLLIN, 0};
    if (::poll(&waiting, 1, kLookMs) <= 0) continue;
    std::array<char, 512> buffer;
    const ssize_t got = ::read(output, buffer.data(), buffer.size());
    if (got <= 0) return true;
    words->append(buffer.data(), static_cast<size_t>(got));
    if (words->size() > kMaxWords) words->erase(0, words->size() - kMaxWords);
  }
  return false;
}

/// Its exit status, or nothing in time.
bool wait_for(pid_t pid, Time deadline, const std::stop_token& stop, int* status) {
  while (Clock::now() < deadline && !stop.stop_requested()) {
    if (::waitpid(pid, status, WNOHANG) == pid) return true;
    ::poll(nullptr, 0, kLookMs);
  }
  return false;
}

}  // namespace

Status run_fence_agent(const FenceAgent& agent, const std::string& peer, const std::stop_token& stop) {
  const std::string what = "fence node '" + peer + "' by " + agent.command;
  REMUSD_ASSIGN(const ScopedFd input, make_input(input_of(agent)));
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return Status::from_errno(what);
  const ScopedFd output(ends[0]);
  ScopedFd theirs(ends[1]);
  auto pid = spawn(agent.command, input.get(), theirs.get());
  if (!pid.ok()) return pid.status().with_context(what);
  theirs.reset();

  const Time deadline = Clock::now() + std::chrono::milliseconds(agent.timeout_ms);
  std::string words;
  int status = 0;
  const bool ended =
      listen_to(output.get(), deadline, stop, &words) && wait_for(*pid, deadline, stop, &status);
  if (!ended) {
    ::kill(-*pid, SIGKILL);
    ::waitpid(*pid, &status, 0);
    return Status(
        Code::timed_out,
        what + ": " +
            (stop.stop_requested() ? "given up"
                                   : "no answer within " + std::to_string(agent.timeout_ms) + " ms") +
            "; it does not count as fenced");
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  std::replace(words.begin(), words.end(), '\n', ' ');
  return Status(Code::io, what + ": " +
                              (WIFEXITED(status) ? "exit " + std::to_string(WEXITSTATUS(status))
                                                 : "signal " + std::to_string(WTERMSIG(status))) +
                              (words.empty() ? "" : ": " + words) + "; it does not count as fenced");
}

}  // namespace remusd::control
