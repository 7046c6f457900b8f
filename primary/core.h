// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The primary's pure state machine: events and `now` in, actions out; no thread, socket or clock. The ship
// thread owns it (ship.h); the property test drives the same machine.
//
//   connecting --standby_ready--> syncing --acked(1)--> protecting
//        |                          |                      |
//        | contact lost, refusal, unprotect, order_failover, guest_gone, guest_error
//        v                          v                      v
//   no COMMIT was queued: go on    COMMIT was queued: deciding <--answer unknown / ask again--> frozen
//        v                          | won, epochs stopped  | lost
//   unprotected                unprotected (or failed)   fenced
//
// Why somebody leaves protection (intent): lost (contact ended), leave (the arbiter, then goodbye), order
// (failover or switchover: ORDER once all sealed is sent; the arbiter only after the backup went away: a head
// start), gone (the guest ended while the arbiter was asked), hand_over (it ended and the backup may have it:
// ORDER only). In a switchover the guest stands after its last epoch; it is let run here only when the right
// to run was won back.
//
// Always:
//   released <= acked <= sent <= sealed.
//   pass_output is returned at most once, and only when no COMMIT was ever queued or the right to run was
//   won, and only while no epoch thread runs (it could begin to hold again). fence is returned at most once
//   and never together with pass_output; after either nothing is released. At most one ask_arbiter is
//   unanswered, and none follows the end of a guest that the backup may have. Only a record of a *higher*
//   generation that is not ours fences: a record that is missing or rolled back freezes, because nobody is
//   known to have won. After a final state no event has any effect.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "arbiter/arbiter.h"
#include "ckpt/detector.h"
#include "primary/action.h"
#include "primary/protection.h"

namespace remusd::primary {

/// Epochs sealed but not yet acknowledged: the interval is stretched rather than have more in flight.
inline constexpr uint64_t kMaxInFlight = 4;

struct CoreConfig {
  uint64_t generation = 0;  // of this session; the record's now
  std::string nonce;        // names our request for generation + 1, in every attempt
  std::string node, peer;
  Duration heartbeat_interval = std::chrono::milliseconds(20);
  int heartbeat_lost = 5;
  Duration handshake_timeout = std::chrono::seconds(60);
  Duration ack_timeout = std::chrono::seconds(10);  // without progress, by ticks of ours: a backup that lives
  Duration head_start = std::chrono::milliseconds(500);   // for the backup, after an ordered failover
  Duration order_timeout = std::chrono::seconds(10);      // the backup must have gone away by then
  Duration switchover_timeout = std::chrono::seconds(2);  // the same, while the guest stands
  Duration backoff_first = std::chrono::milliseconds(100), backoff_limit = std::chrono::seconds(5);
};

class Core {
 public:
  Core(const CoreConfig& config, Time now);

  // The link and what came over it.
  Actions link_up(Time now);
  Actions link_lost(const Status& why, Time now);
  Actions refused(const Status& why, Time now);  // REFUSE or GOODBYE
  Actions standby_ready(Time now);
  void heard(Time now);
  Actions acked(uint64_t generation, uint64_t epoch, uint64_t digest, Time now);
  // The epoch thread, in its order.
  void holding();
  void sealed(uint64_t epoch);
  Actions sent(uint64_t epoch, uint64_t digest);    // its COMMIT frame was queued. REQUIRES: may_send()
  Actions guest_gone(const Status& why, Time now);  // it ended other than by its own will
  Actions guest_error(const Status& why, Time now);
  Actions too_slow(const Status& why, Time now);  // the backup, by policy: leaves in order
  Actions epochs_stopped(Time now);
  // Time, the arbiter, operators.
  Actions tick(Time now);
  Actions arbiter(const arbiter::Answer& answer, Time now);
  Actions unprotect(const std::string& reason, Time now);
  Actions order_failover(Time now);
  Actions order_switchover(Time now);
  /// An operator's word that nobody else runs the guest: it counts as won where the right to run is being
  /// decided, and is refused elsewhere.
  Actions force();

  State state() const { return state_; }
  bool final() const;
  const Status& end() const { return end_; }
  /// Why an order was not followed, or what the arbiter said last; empty: nothing to say.
  const std::string& note() const { return note_; }
  /// Epoch frames may be queued.
  bool may_send() const;
  bool link_wanted() const { return link_up_; }
  /// The order under way is for a switchover.
  bool planned() const { return planned_; }
  /// What comes for the guest that stands may be passed on to the backup.
  bool may_forward() const { return link_up_ && planned_ && order_sent_; }
  /// The right to run was not won from the arbiter but taken on an operator's word.
  bool forced() const { return forced_; }
  uint64_t generation() const { return config_.generation; }
  uint64_t sealed_epoch() const { return sealed_; }
  uint64_t sent_epoch() const { return sent_; }
  uint64_t acked_epoch() const { return acked_; }
  uint64_t released_epoch() const { return released_; }

 private:
  enum class Intent { none, lost, leave, order, gone, hand_over };

  void enter(State state, Actions* out);
  void stop_epochs(Actions* out);
  void drop_link(Actions* out);
  bool ack_overdue();
  void lose(const Status& why, Duration head_start, Time now, Actions* out);
  void leave(Intent intent, Status why, Time now, Actions* out);
  void decide(Time now, Actions* out);
  void ask_when_due(Time now, Actions* out);
  bool order(Duration timeout, Time now);
  void order_when_drained(Actions* out);
  void conclude(Actions* out);
  void fence(const arbiter::Record& winner, Actions* out);
  void abandon(Actions* out);
  void check() const;

  static constexpr size_t kDigests = 16;
  static_assert(kDigests > kMaxInFlight);

  CoreConfig config_;
  State state_ = State::connecting;
  Intent intent_ = Intent::none;
  Status end_;
  std::string note_;
  ckpt::Detector detector_;
  Time handshake_began_;
  bool link_up_ = false;
  bool epochs_running_ = false, stop_asked_ = false;
  bool holding_ = false, passed_ = false, fenced_ = false;
  bool order_sent_ = false, planned_ = false;
  bool won_ = false, forced_ = false;
  bool asking_ = false;
  std::optional<Time> ask_at_;
  std::optional<Time> order_deadline_;
  Duration backoff_;
  uint64_t sealed_ = 0, sent_ = 0, acked_ = 0, released_ = 0;
  uint64_t ticked_ack_ = 0;  // acked_ at the last tick
  int ticks_without_ack_ = 0;
  std::array<uint64_t, kDigests> digests_{};  // of sent epochs, by epoch % kDigests
};

}  // namespace remusd::primary
