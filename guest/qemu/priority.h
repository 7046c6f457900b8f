// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>
#include <vector>

namespace remusd::guest::qemu {

/// While it lives, those threads of a QEMU process that carry out a pause, its main loop and its monitors',
/// come before others: the guest stands still while they wait for a processor. vCPUs keep what they have.
/// Without the right to that (CAP_SYS_NICE) nothing changes.
class PausePriority {
 public:
  PausePriority() = default;
  explicit PausePriority(int pid);
  /// Gives the threads their former priority back; those that have ended are passed over.
  ~PausePriority();
  PausePriority(PausePriority&& other) noexcept : before_(std::exchange(other.before_, {})) {}
  PausePriority& operator=(PausePriority&& other) noexcept {
    std::swap(before_, other.before_);
    return *this;
  }

 private:
  std::vector<std::pair<int, int>> before_;  // thread, its nice value
};

}  // namespace remusd::guest::qemu
