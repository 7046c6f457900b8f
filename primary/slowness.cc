// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/slowness.h"

#include <string>

namespace remusd::primary {
namespace {

std::string in_ms(Duration duration) {
  return std::to_string(static_cast<int64_t>(to_ms(duration))) + " ms";
}

}  // namespace

void Slowness::note(Duration took, const char* what, Time now) {
  if (!since_) since_ = now;
  if (took < worst_) return;
  worst_ = took;
  what_ = what;
}

void Slowness::acknowledged(const EpochSample& sample, Time now) {
  const bool late = sample.commit > options_.bound;
  const bool stretched = sample.reason == EpochReason::staging && sample.interval > options_.bound;
  if (late) note(sample.commit, "a commit took", now);
  if (stretched) note(sample.interval, "an epoch waited for room for", now);
  if (late || stretched) return;
  since_.reset();
  worst_ = {};
}

Status Slowness::tick(std::optional<Time> waiting_since, Time now) {
  if (waiting_since && now - *waiting_since > options_.bound) {
    note(now - *waiting_since, "no acknowledgement came for", now);
  }
  if (!since_ || !options_.unprotect || now - *since_ < options_.after) return {};
  return {Code::timed_out, "it has been slow for " + in_ms(now - *since_) + " (" + what_ + " " +
                               in_ms(worst_) + ", slow is above " + in_ms(options_.bound) + ")"};
}

}  // namespace remusd::primary
