// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The pure heart of a backup: it decides when an epoch is acknowledged, when the primary is lost, when the
// right to run is asked for, and when the standby is promoted or destroyed. It does no I/O: events and `now`
// come in, actions go out, and the shell (receiver.h) carries them out in order.
//
// States (session.h) and what moves them:
//
//   handshake --standby_ready--> syncing --epoch 1 staged--> standby --loss, order--> deciding
//   standby --order, planned--> loading --loaded--> deciding  loading --not loaded--> failed
//   deciding --won--> promoting --promoted--> promoted        deciding --lost--> ended
//   deciding --won, where fencing is asked for--> fencing --fenced, force--> promoting
//   standby, loading, deciding, frozen, fencing --force--> promoting
//   deciding --unknown--> frozen --asked again--> won, lost or frozen still
//   handshake, syncing --loss--> failed                       promoting --promotion failed--> failed
//   handshake, syncing, standby --goodbye--> ended            every state that is not final --end--> ended
//
// "Loss" is silence longer than the detector allows, a closed link, or bytes that cannot be trusted. A closed
// link is no proof that the primary died: it may live and ask the arbiter, too. It gets a head start, because
// a guest that goes on where it runs is the better outcome; a dead one does not use it.
//
// In a planned switchover the guest stands on the primary, whole. So all that can fail is done before the
// right to run is asked for: the standby is loaded, and stands. Where that fails nobody asks; the primary is
// told, and goes on. Any other failover asks first: there is nothing to go back to, and time counts.
//
// What always holds:
//   - an epoch is acknowledged only when it was staged whole with the right digest, and epochs rise by one;
//   - applied() <= acked(): the committed image never runs ahead of what was acknowledged;
//   - once loss is suspected or a failover ordered nothing is acknowledged any more, for good (a latch);
//   - the right to run is asked for only after that latch has closed, and one request at a time;
//   - planned, it is asked for only once the standby is loaded; a loaded one runs by promotion alone;
//   - promotion follows only a won answer or an operator's force, and it, as loading, only when
//     applied() == acked() >= 1;
//   - a fence agent that failed or said nothing never counts as fenced.
//
// Not thread-safe: it belongs to the thread that owns the link.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arbiter/arbiter.h"
#include "backup/session.h"
#include "ckpt/clock.h"
#include "ckpt/detector.h"
#include "ckpt/status.h"

namespace remusd::backup {

enum class ActionKind {
  ack,              // number: the epoch; send ACK
  apply,            // number: the epoch; apply it in slices, then tell applied()
  load,             // restore the standby, but let it stand, then tell loaded()
  ask_arbiter,      // number: the expected generation g; swap g -> g + 1, then tell arbiter_answered()
  fence_peer,       // run the fence agent, then tell fenced()
  promote,          // run the standby, restored before if it is not loaded, then tell promotion_done()
  tell_end,         // why: to the primary, which is on the link still
  destroy_standby,  // if there is one
  ask_switchover,   // ask the primary for it
  close_link,       // why: for the log; a closed link may be closed again
  report,           // the state has changed
};

struct Action {
  ActionKind kind;
  uint64_t number = 0;
  Status why;
};
using Actions = std::vector<Action>;

struct CoreConfig {
  Duration heartbeat_interval = std::chrono::milliseconds(20);
  int heartbeat_lost = 5;
  int head_start = 2;  // heartbeat intervals since it was heard, for a primary whose connection just broke
  Duration retry_min = std::chrono::milliseconds(50);  // between two requests while frozen; doubles up to
  Duration retry_max = std::chrono::seconds(2);
  std::string nonce;   // of every request of this session: an earlier one may have committed unheard
  bool fence = false;  // promote only once the primary's host is known to be off
};

class Core {
 public:
  explicit Core(CoreConfig config);

  // Events. Those that a final state no longer cares about are ignored, so a late event never does harm.
  void admitted(uint64_t generation);
  void standby_ready(Time now, Actions* actions);
  /// Bytes of the primary came.
  void heard(Time now);
  /// The epoch's COMMIT came; `good`: it is staged whole, counts and digest right.
  void epoch_staged(uint64_t epoch, bool good, Actions* actions);
  void applied(uint64_t epoch, Actions* actions);
  /// REQUIRES: everything that had arrived by `now` was told.
  void tick(Time now, Actions* actions);
  void link_lost(const Status& why, Actions* actions);
  void goodbye(const std::string& reason, Actions* actions);
  /// `unsafe` before the first committed epoch. Ordering twice is harmless. `planned`: the primary's guest
  /// stands; the link stays open until it runs here.
  Status order_failover(const std::string& who, bool planned, Actions* actions);
  /// An operator asks for a switchover: the primary is asked to begin one. `unsafe` unless it is a standby.
  Status order_switchover(Actions* actions);
  /// An operator's word that the primary runs nowhere: promotes without the arbiter and the fence agent.
  Status force(const std::string& who, Actions* actions);
  void arbiter_answered(const arbiter::Answer& answer, Time now, Actions* actions);
  void fenced(const Status& outcome, Time now, Actions* actions);
  void loaded(const Status& outcome, Actions* actions);
  void promotion_done(const Status& outcome, Actions* actions);
  /// The handshake failed on our side (gate, admission, files, standby).
  void handshake_failed(const Status& why, Actions* actions);
  /// A local order to end: destroys the standby, whatever goes on.
  void end(const Status& why, Actions* actions);

  /// What to do with data of `epoch`: the next one is staged, anything is dropped once the latch has closed,
  /// and all else cannot be trusted.
  enum class Take { stage, drop, corrupt };
  Take data(uint64_t epoch) const;

  State state() const { return state_; }
  bool final() const {
    return state_ == State::promoted || state_ == State::ended || state_ == State::failed;
  }
  bool acking_stopped() const { return acking_stopped_; }
  bool planned() const { return planned_; }
  /// It runs here on an operator's word, not the arbiter's.
  bool forced() const { return forced_; }
  /// What the fence agent said last; ok: nothing, or that the host is off.
  const Status& fence_note() const { return fence_note_; }
  const Status& why() const { return why_; }  // of the end, or of the failover
  uint64_t generation() const { return generation_; }
  uint64_t acked() const { return acked_; }
  uint64_t applied() const { return applied_; }
  /// When tick() has work next; Time::max(): never. An earlier call does nothing.
  Time next_tick() const;
  Time last_heard() const { return detector_.last_heard(); }

 private:
  enum class Asking { at_once, after_head_start, not_at_all };
  Status may_take_over(const std::string& what) const;
  void suspect(const Status& why, Asking asking, Actions* actions);
  void ask(Actions* actions);
  void won(Actions* actions);
  void fence(Actions* actions);
  Time retry_at(Time now);
  void load_when_applied(Actions* actions);
  void promote_when_applied(Actions* actions);
  void finish(State state, const Status& why, Actions* actions);
  void enter(State state, Actions* actions);

  CoreConfig config_;
  State state_ = State::handshake;
  Status why_, fence_note_;
  uint64_t generation_ = 0, acked_ = 0, applied_ = 0;
  bool acking_stopped_ = false, asking_ = false;  // asking_: a request is under way
  bool planned_ = false, forced_ = false;
  bool fencing_ = false;  // the agent runs
  enum class Load { none, under_way, done } load_ = Load::none;
  bool promoting_ = false;  // the promote action is out
  ckpt::Detector detector_;
  Time next_look_{};  // for silence
  Duration retry_{};
  Time next_ask_{};
};

}  // namespace remusd::backup
