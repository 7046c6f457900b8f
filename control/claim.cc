// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/claim.h"

#include <utility>

namespace remusd::control {
namespace {

constexpr Duration kRetry = std::chrono::seconds(2);

}  // namespace

Claim::Claim(arbiter::Arbiter& arbiter, std::string vm, std::string node, uint64_t generation)
    : arbiter_(arbiter), vm_(std::move(vm)) {
  desired_.generation = generation + 1;
  desired_.owner = std::move(node);
  desired_.boot_id = arbiter::this_boot_id();
  desired_.nonce = arbiter::make_nonce();
}

std::optional<Status> Claim::look(Time now, Duration timeout) {
  if (now < next_) return std::nullopt;
  const arbiter::Answer answer =
      arbiter::acquire(arbiter_, vm_, desired_.generation - 1, desired_, now + timeout);
  next_ = Clock::now() + kRetry;
  switch (answer.verdict) {
    case arbiter::Verdict::won:
      return Status();
    case arbiter::Verdict::lost:
      // An earlier request of this node's may have committed unheard, before the force.
      if (answer.current && answer.current->owner == desired_.owner) return Status();
      if (answer.current && answer.current->generation >= desired_.generation) {
        return Status(Code::unsafe, "node '" + answer.current->owner + "' won generation " +
                                        std::to_string(answer.current->generation) +
                                        " as well: the guest may run twice, end one of them");
      }
      return std::nullopt;  // A record that is missing or older names nobody.
    case arbiter::Verdict::unknown:
      return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace remusd::control
