// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Whether the backup, or the way to it, is slow, and when that has lasted too long. Pure: it keeps no clock.
//
// Slow is, with one bound for all three:
//   - an epoch whose acknowledgement came later than `bound` after its pause began;
//   - an epoch that began later than `bound` after the one before because the backup had not yet taken what
//     was copied (reason staging);
//   - no acknowledgement for longer than `bound` while one is waited for.
// One epoch that is not slow ends it. A stall of ours does not count: it is noticed only by what follows it.
//
// Not thread-safe: the ship thread owns it.
#pragma once

#include <optional>

#include "ckpt/epoch_sample.h"
#include "ckpt/status.h"

namespace remusd::primary {

struct SlowOptions {
  bool unprotect = false;  // else epochs are lengthened, whatever it costs
  Duration after = std::chrono::seconds(5);
  Duration bound = std::chrono::milliseconds(500);
};

class Slowness {
 public:
  explicit Slowness(const SlowOptions& options) : options_(options) {}

  void acknowledged(const EpochSample& sample, Time now);
  /// `waiting_since`: the last acknowledgement when another one is waited for. Not ok: it has been slow for
  /// `after` and protection shall end; the message says by how much.
  Status tick(std::optional<Time> waiting_since, Time now);

  bool slow() const { return since_.has_value(); }

 private:
  void note(Duration took, const char* what, Time now);

  SlowOptions options_;
  std::optional<Time> since_;
  Duration worst_{};
  const char* what_ = "";
};

}  // namespace remusd::primary
