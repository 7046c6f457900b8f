// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of arbiters ask for, and until when.
#pragma once

#include <string>

#include "arbiter/arbiter.h"

namespace remusd::arbiter {

/// How much later than its deadline a call may return on a busy machine.
inline constexpr std::chrono::milliseconds kLate{400};

inline Time in(std::chrono::milliseconds time) {
  return Clock::now() + time;
}
/// For what must be answered.
inline Time soon() {
  return in(std::chrono::seconds(10));
}

inline Record make_record(uint64_t generation, const std::string& owner) {
  return {generation, owner, this_boot_id(), 7, make_nonce(), "b"};
}

}  // namespace remusd::arbiter
