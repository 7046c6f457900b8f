// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/reprotect.h"

#include <algorithm>

namespace remusd::control {

void Reprotect::want(Target target, const Status& why, Time now) {
  const bool lasted = !held_since_ || now - *held_since_ >= options_.limit;
  held_since_.reset();
  if (!options_.enabled) return;
  if (lasted) attempts_ = 0;
  wait_ = lasted ? options_.first : std::min(wait_ * 2, options_.limit);
  next_ = now + wait_;
  target_ = std::move(target);
  trying_ = false;
  last_error_ = why.message();
}

void Reprotect::adopt(Target target, Time now) {
  clear();
  next_ = now;
  target_ = std::move(target);
}

void Reprotect::clear() {
  target_.reset();
  trying_ = false;
  held_since_.reset();
  wait_ = options_.first;
  attempts_ = 0;
  last_error_.clear();
}

Reprotect::Target Reprotect::began() {
  REMUSD_ASSERT(target_ && !trying_, "one attempt at a time");
  trying_ = true;
  ++attempts_;
  return *target_;
}

void Reprotect::failed(const Status& why, Time now) {
  if (!target_) return;
  if (!options_.enabled) return clear();
  trying_ = false;
  last_error_ = why.message();
  const bool heals = why.code() != Code::unsafe && why.code() != Code::invalid;
  wait_ = heals && attempts_ > 1 ? std::min(wait_ * 2, options_.limit) : heals ? wait_ : options_.limit;
  next_ = now + wait_;
}

void Reprotect::held(Time now) {
  target_.reset();
  trying_ = false;
  held_since_ = now;
  last_error_.clear();
}

Duration Reprotect::next_in(Time now) const {
  return target_ && !trying_ ? std::max(next_ - now, Duration::zero()) : Duration::zero();
}

}  // namespace remusd::control
