// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One QEMU process: started here, or somebody else's. It lives on when this object or this whole process
// ends: a session of its own, no pipe to us; its standard error goes to a file.
#pragma once

#include <string>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"

namespace remusd::guest::qemu {

class Process {
 public:
  /// Starts argv[0] (searched in PATH). `inherited` become descriptors 3, 4, ...; nothing else is inherited.
  static Result<Process> spawn(const std::vector<std::string>& argv, const std::vector<int>& inherited,
                               const std::string& log_path);
  /// A process that runs already.
  static Result<Process> adopt(int pid, const std::string& log_path = "");

  Process() = default;
  int pid() const { return pid_; }
  const std::string& log_path() const { return log_path_; }

  /// True when it has ended, waiting up to `timeout` for that. Reaps a child of ours.
  bool gone(Duration timeout) const;
  /// SIGKILL, then waits until it is gone.
  Status kill() const;
  /// The last line that it wrote to its log, without its own name before it; empty when there is none.
  std::string last_words() const;

 private:
  int pid_ = 0;
  ScopedFd pidfd_;
  std::string log_path_;
};

/// Elements of /proc/PID/cmdline.
Result<std::vector<std::string>> command_line_of(int pid);

}  // namespace remusd::guest::qemu
