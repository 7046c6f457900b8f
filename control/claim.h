// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include "arbiter/arbiter.h"

namespace remusd::control {

/// The right to run that an operator took while the arbiter was silent, brought into its record as soon as it
/// answers. Until then nobody else may know of it. One thread at a time; look() may block for the timeout.
class Claim {
 public:
  /// Of the generation after `generation`, for `node`.
  Claim(arbiter::Arbiter& arbiter, std::string vm, std::string node, uint64_t generation);

  /// Asks when it is time to. ok once the record says so, `unsafe` with the winner's name when it says that
  /// another node won: then the guest may run twice. Nothing: not known yet.
  std::optional<Status> look(Time now, Duration timeout);

 private:
  arbiter::Arbiter& arbiter_;
  const std::string vm_;
  arbiter::Record desired_;
  Time next_{};
};

}  // namespace remusd::control
