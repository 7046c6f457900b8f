// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace remusd::primary {

/// What the core (core.h) has its shell do.
struct Action {
  enum class Kind {
    start_epochs,     // the standby is ready: begin the first sync
    stop_epochs,      // the guest runs on, output stays held
    last_epoch,       // one more, after which the guest stands; what comes for it is kept for the backup
    let_run,          // if it stands
    release_through,  // number: epoch
    ask_arbiter,      // number: expected generation
    pass_output,
    fence,         // shut the gate for good, then destroy the guest
    send_order,    // planned(): for a switchover, else for a failover
    send_goodbye,  // reason: end()
    close_link,    // after what is queued has left, where possible
    report,        // the state changed
  };
  Kind kind;
  uint64_t number = 0;
};

class Actions {
 public:
  void add(Action::Kind kind, uint64_t number = 0);
  const Action* begin() const { return items_.data(); }
  const Action* end() const { return items_.data() + size_; }
  size_t size() const { return size_; }

 private:
  std::array<Action, 12> items_{};
  size_t size_ = 0;
};

}  // namespace remusd::primary
