// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One guest on this node, whatever it is here: running, protected, a replica, or gone. It owns the guest, its
// gates and its Protection, and carries out the commands on it one after the other.
//
//   nothing --start--> running --protect--> (Protection's states) --> unprotected --protect--> ...
//   nothing --admit--> (Session's states) --promoted--> unprotected        any --stop--> stopped
//   left by an earlier daemon: frozen --the arbiter names us--> running, unprotected   --another--> fenced
//   protected --lost the right to run--> fenced (the guest is gone)
//
// Always: a guest and a live session never exist together; a Protection lives only beside its guest and is
// destroyed before it, never from its own callback.
//
// Threads: what says "on the strand" must run in strand(), and may block for seconds; the rest may be called
// from any thread and does not block.
#pragma once

#include <boost/asio/strand.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "ckpt/records.h"
#include "control/claim.h"
#include "control/epoch_window.h"
#include "control/exit_code.h"
#include "control/guest_disks.h"
#include "control/guest_state_file.h"
#include "control/guest_status.h"
#include "control/host_context.h"
#include "control/reprotect.h"
#include "control/session_slot.h"
#include "netbuf/net_buffer.h"

namespace remusd::control {

class GuestHost : public std::enable_shared_from_this<GuestHost> {
 public:
  using Strand = boost::asio::strand<boost::asio::any_io_executor>;

  GuestHost(std::string name, HostContext& context);
  ~GuestHost();

  const std::string& name() const { return name_; }
  Strand& strand() { return strand_; }

  // Commands, on the strand. `dry_run` changes nothing; `force`: although a peer may hold a newer replica.
  Reply start(const guest::Definition& definition, bool force, bool dry_run);
  Reply stop(bool graceful, Duration patience, bool dry_run);
  Reply protect(const std::string& peer, const primary::PaceOptions& pace, bool dry_run);
  Reply unprotect(const std::string& reason, bool dry_run);
  Reply failover(bool dry_run);
  Reply switchover(bool dry_run);
  Reply resync(bool dry_run);
  Reply verify_disks(bool dry_run);
  Reply force_failover(bool dry_run);
  Reply force_unprotect(bool dry_run);
  Reply bench_floor(int count);

  /// Before any other call: an earlier daemon left this behind.
  void inherit(GuestState left);

  // On the strand: what time and others bring.
  void poll();
  void adopt(const SessionSlot& slot, std::shared_ptr<backup::Promoted> promoted);
  void session_ended(const SessionSlot& slot);  // after the session was joined
  void standby_started(int pid);
  /// Ends protection in order and lets go of the guest without ending it, where it has a process of its own.
  /// False when protection would not end: then the process must end without destroying this host.
  bool shut_down();

  GuestStatus status() const;
  /// May `slot`'s session make this node the backup of the guest? From then on it is this host's session.
  Status admit(std::shared_ptr<SessionSlot> slot, const std::string& peer);
  /// The session's snapshot in its slot is new: wakes a command that waits for it.
  void session_changed() {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  void on_arbiter_request(Duration took) { metrics_->on_arbiter_request(took); }
  Residues& residues() { return context_.residues; }

 private:
  Status check_start(const guest::Definition& definition, bool force);
  Status start_guest(const guest::Definition& wanted);
  void take_guest(const guest::Definition& definition, bool launched, std::shared_ptr<disk::Disks> disks,
                  std::unique_ptr<guest::Guest> guest, std::unique_ptr<netbuf::NetBuffer> net);
  void settle_leftover();
  Status adopt_leftover();
  void keep_leftover(const Status& why);
  void drop_leftover(const std::string& state, const std::string& reason);
  void remember();
  void save(GuestState now);
  Result<std::unique_ptr<netbuf::NetBuffer>> open_gates(guest::Guest& guest);
  Status win_right_to_run();
  Status check_protect(const std::string& peer) const;
  Reply check_resync(const std::string& what) const;
  Status begin_protection(const std::string& peer, const primary::PaceOptions& pace, bool automatic);
  bool replace_attempt(const std::string& peer, const primary::PaceOptions& pace);
  primary::Options protection_options(const std::string& peer, const primary::PaceOptions& pace) const;
  primary::Callbacks protection_callbacks(uint64_t id);
  void on_protection_state(uint64_t id, const primary::Snapshot& snapshot);
  bool wait_protection_end(Duration patience);
  void settle();
  void plan_reprotect(const primary::Snapshot& last);  // mutex_ is held
  void reprotect_when_due();
  void stop_reprotecting();
  bool reprotecting() const;
  void disown_replicas();
  Reply hand_over(ckpt::OrderKind kind, bool dry_run);
  std::shared_ptr<backup::Session> session() const;
  Reply wait_session_end(const std::string& what);
  void settle_claim();
  void finish_promotion();
  void lose_guest(const std::string& state, const std::string& reason);
  void watch_guest();
  void on_guest_event(const guest::Event& event);
  bool end_powered_off();
  void retire_if_idle();
  std::shared_ptr<primary::Protection> protection() const;
  Status not_here(const std::string& what) const;
  void fill_primary(const primary::Snapshot& snapshot, GuestStatus* status) const;
  void fill_reprotect(GuestStatus* status) const;
  static void fill_backup(const backup::Snapshot& snapshot, GuestStatus* status);

  const std::string name_;
  HostContext& context_;
  Strand strand_;
  std::unique_ptr<VmMetrics> metrics_;  // null once retired

  // The strand's own.
  guest::Definition definition_;
  std::shared_ptr<disk::Disks> disks_;  // of guest_, which goes before them; set under mutex_, too
  std::unique_ptr<guest::Guest> guest_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  std::optional<Claim> claim_;
  bool launched_ = false;  // we, or an earlier daemon of this node, started its process
  GuestState saved_;       // as last written
  std::optional<GuestState> leftover_;
  Time leftover_next_{};
  Duration leftover_wait_{};
  bool record_names_peer_ = false;  // which has no replica: the arbiter's record is to be won anew

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // last_protection_ or session_'s state
  // Guarded by mutex_ from here on; protection_ and has_guest_ are changed on the strand only.
  bool has_guest_ = false, has_leftover_ = false, starting_ = false, retired_ = false;
  bool ever_protected_ = false;
  std::shared_ptr<primary::Protection> protection_;
  bool automatic_ = false, powered_off_ = false;  // we began it ourselves; by the guest
  Time last_reset_{};
  Reprotect reprotect_;
  primary::Snapshot last_protection_;
  primary::State logged_state_ = primary::State::failed;
  std::shared_ptr<SessionSlot> session_;
  uint64_t promoted_slot_ = 0;  // the session whose guest we have, until it has ended
  EpochWindow window_;
  GuestStatus rest_;  // what status() says when nothing is live, and what does not change meanwhile
};

}  // namespace remusd::control
