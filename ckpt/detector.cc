// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/detector.h"

#include <algorithm>

#include "ckpt/status.h"

namespace remusd::ckpt {

Detector::Detector(Duration interval, int lost_after) : interval_(interval), lost_after_(lost_after) {
  REMUSD_ASSERT(interval > Duration::zero(), "a heartbeat interval must be positive");
  REMUSD_ASSERT(lost_after >= 1, "a peer cannot be lost before one interval");
}

void Detector::set_lost_after(int lost_after) {
  REMUSD_ASSERT(lost_after >= 1, "a peer cannot be lost before one interval");
  lost_after_ = lost_after;
  silent_ticks_ = 0;
}

Duration Detector::stall() const {
  return std::max(interval_ * 2, window() / 2);
}

void Detector::start(Time now) {
  started_ = true;
  silent_since_ = last_tick_ = last_heard_ = now;
  silent_ticks_ = 0;
}

void Detector::heard(Time now) {
  if (!started_ || lost_) return;
  silent_since_ = std::max(silent_since_, now);
  last_heard_ = std::max(last_heard_, now);
  silent_ticks_ = 0;
}

bool Detector::tick(Time now) {
  if (!started_ || lost_) return !lost_;
  const Duration gap = now - last_tick_;
  last_tick_ = std::max(last_tick_, now);
  // We slept: what was silent meanwhile says nothing about the peer.
  if (gap > stall()) silent_since_ = now;
  if (now > last_heard_) ++silent_ticks_;
  lost_ = now - silent_since_ >= window() || silent_ticks_ >= kLateTicksFactor * lost_after_;
  return !lost_;
}

}  // namespace remusd::ckpt
