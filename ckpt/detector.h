// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Tells a lost peer from a slow moment of ours. Pure: it is handed `now`. Shared by primary and backup.
//
// Silence counts only while we were awake. The owner ticks once per heartbeat interval, after it has read
// everything that had arrived. When a tick comes much later than asked, this process or its host stood still:
// frames may be waiting unread, and the peer gets a fresh full window. So that an overloaded host that is
// always late still notices a dead peer, kLateTicksFactor * lost_after ticks in a row without a sign of life
// are a loss, too: that many times we were awake, looked, and found nothing.
//
// Always: lost is sticky; heard() before the loss empties the silence; alive while nothing was started.
#pragma once

#include "ckpt/clock.h"

namespace remusd::ckpt {

class Detector {
 public:
  static constexpr int kLateTicksFactor = 4;
  /// Until the first checkpoint is acknowledged nothing can be taken over and a loss is not urgent, while
  /// both hosts are busier than they will ever be: so many times more patience keeps a first sync from
  /// failing.
  static constexpr int kSyncPatience = 20;

  /// REQUIRES: interval > 0, lost_after >= 1 (intervals of silence).
  Detector(Duration interval, int lost_after);

  /// From here on the peer owes us signs of life.
  void start(Time now);
  /// Intervals of silence that count as a loss from here on. REQUIRES: lost_after >= 1.
  void set_lost_after(int lost_after);
  /// Bytes of the peer came.
  void heard(Time now);
  /// Call once per interval(). True while the peer counts as alive.
  bool tick(Time now);

  bool started() const { return started_; }
  bool lost() const { return lost_; }
  Duration interval() const { return interval_; }
  Duration window() const { return interval_ * lost_after_; }
  /// A gap between ticks above this one is a stall of ours.
  Duration stall() const;
  Time last_heard() const { return last_heard_; }

 private:
  Duration interval_;
  int lost_after_;
  bool started_ = false;
  bool lost_ = false;
  Time silent_since_{};
  Time last_tick_{};
  Time last_heard_{};
  int silent_ticks_ = 0;
};

}  // namespace remusd::ckpt
