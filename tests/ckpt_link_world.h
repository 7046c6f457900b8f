// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the tests of links have in common, with TLS and without.
#pragma once

#include <string>
#include <vector>

#include "ckpt/link.h"
#include "tests/loopback.h"
#include "tests/patience.h"

namespace remusd::ckpt {

/// `size` bytes that tell their place and their seed.
inline std::vector<std::byte> body_of(size_t size, uint64_t seed) {
  std::vector<std::byte> body(size);
  for (size_t i = 0; i < size; ++i) body[i] = static_cast<std::byte>(seed * 31 + i * 7 + i / 256);
  return body;
}

struct Received {
  FrameType type;
  uint64_t epoch;
  std::vector<std::byte> body;
};

/// Waits until `done` holds, the link is closed or patience ends.
template <typename Done>
Status serve(Link& link, std::vector<Received>* frames, Done done) {
  const Time deadline = Clock::now() + kPatience;
  while (!done()) {
    if (Clock::now() >= deadline) return {Code::timed_out, "the test ran out of patience"};
    REMUSD_TRY(link.wait(deadline, [&](const FrameView& frame) {
      if (frames != nullptr)
        frames->push_back({frame.type(), frame.header.epoch, {frame.body.begin(), frame.body.end()}});
      return Status();
    }));
  }
  return {};
}

}  // namespace remusd::ckpt
