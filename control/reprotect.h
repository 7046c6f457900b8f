// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// When a guest that lost its protection is protected again without an operator. Pure: it is told what
// happened and when, and keeps no clock of its own.
//
//   idle --want--> waiting --due, began--> trying --held--> idle        any --clear--> idle
//                     ^                       |
//                     +-------- failed -------+
//
// The wait doubles from attempt to attempt, up to a limit. A refusal that waiting does not heal (`unsafe`:
// the hosts differ) goes to the limit at once. A protection that held for less than the limit counts as one
// more attempt, so that a pair that comes and goes is not synchronised all the time.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "ckpt/clock.h"
#include "ckpt/status.h"
#include "primary/pacer.h"

namespace remusd::control {

class Reprotect {
 public:
  struct Options {
    bool enabled = true;  // off: only one attempt after adopt()
    Duration first = std::chrono::seconds(1), limit = std::chrono::seconds(30);
  };
  struct Target {
    std::string peer;
    primary::PaceOptions pace;
  };

  explicit Reprotect(const Options& options) : options_(options), wait_(options.first) {}

  /// The guest lost its protection for `why`, or was promoted: `target` shall protect it.
  void want(Target target, const Status& why, Time now);
  /// The guest was protected by `target` when an earlier daemon left it: it shall be again, at once.
  void adopt(Target target, Time now);
  /// An operator decided, or the guest is gone.
  void clear();

  bool due(Time now) const { return target_ && !trying_ && now >= next_; }
  /// REQUIRES: due().
  Target began();
  void failed(const Status& why, Time now);
  /// The attempt, or an operator's protect, became a protection.
  void held(Time now);

  bool wanted() const { return target_.has_value(); }
  const Target& target() const { return *target_; }  // REQUIRES: wanted()
  uint64_t attempts() const { return attempts_; }
  /// Until the next attempt; zero while one is under way.
  Duration next_in(Time now) const;
  /// Why the last attempt failed, or why protection was lost.
  const std::string& last_error() const { return last_error_; }

 private:
  Options options_;
  std::optional<Target> target_;
  bool trying_ = false;
  Time next_{};
  Duration wait_;
  std::optional<Time> held_since_;
  uint64_t attempts_ = 0;
  std::string last_error_;
};

}  // namespace remusd::control
