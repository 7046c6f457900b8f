// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One guest that is protected here: the thin shell around the pure core (core.h). It owns the receive thread
// (link, store, core), the standby, and, from promotion on, hands the running guest to its caller.
#pragma once

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "arbiter/arbiter.h"
#include "ckpt/link.h"
#include "disk/disks.h"
#include "guest/guest.h"
#include "netbuf/net_buffer.h"

namespace remusd::backup {

/// standby: at least one epoch is committed. loading: the primary hands its guest over, which is made ready
/// here. deciding: the primary is lost, or handed over, nothing is acknowledged any more, the arbiter is
/// asked. fencing: the right to run is won, the primary's host is being switched off. The last three are
/// final.
enum class State {
  handshake,
  syncing,
  standby,
  loading,
  deciding,
  frozen,
  fencing,
  promoting,
  promoted,
  ended,
  failed
};
std::string_view to_string(State state);

struct Options {
  std::string node;
  Duration heartbeat_interval = std::chrono::milliseconds(20);
  int heartbeat_lost = 5;
  Duration handshake_timeout = std::chrono::seconds(60);
  Duration arbiter_timeout = std::chrono::seconds(2);
  size_t staging_limit_bytes = 0;  // 0: the guest's memory plus an eighth
  ckpt::LinkOptions link;
  std::shared_ptr<ckpt::TlsContext> tls;  // none: plain text
  std::string from;                       // the peer's address, for messages; may be empty
  guest::DriverOptions driver;
  netbuf::NetOptions net;
  uint64_t disk_limit_bytes = 64u << 20;  // of what waits for the disks here
  std::string journals_dir;               // and maps, of guests with disks, by their names
  /// Whether a guest may be kept for `peer` whose disks lie on storage that both hosts see, where a write of
  /// the peer's may still be under way when this host takes over. Empty: none may.
  std::function<Status(const std::string& peer)> may_hold;
  std::string files_dir;  // boot files received from the peer, named by digest
  /// Switches the host of `peer` off and says whether it is: the guest is promoted only once it said ok.
  /// Blocks until it knows or is told to stop. Empty: the right to run is enough.
  std::function<Status(const std::string& peer, const std::stop_token& stop)> fence;
};

struct Snapshot {
  State state = State::handshake;
  Status end;
  std::string vm, peer;
  uint64_t generation = 0;
  uint64_t received = 0, acked = 0, applied = 0;  // epochs
  uint64_t sync_received_bytes = 0;
  uint64_t staged_bytes = 0, staging_limit_bytes = 0;
  int standby_pid = 0;  // of the hypervisor process that waits; 0: none
  Time last_heard{};
  double promote_seconds = 0;  // decision won to guest running; 0 before
  uint64_t memory_bytes = 0;
  disk::ReplicaStats disks;  // zeros without
};

struct Promoted {
  std::shared_ptr<disk::Disks> disks;  // of the guest, which goes before them; null: it has none
  std::unique_ptr<guest::Guest> guest;
  std::unique_ptr<netbuf::NetBuffer> net;  // passing
  guest::Definition definition;
  uint64_t generation = 0;
  bool forced = false;  // the arbiter does not know of this generation
};

struct Callbacks {
  /// Receive thread, after HELLO: may this node be the backup of `vm`? A failure is sent as REFUSE.
  std::function<Status(const std::string& vm, const std::string& peer, uint64_t generation)> admit;
  std::function<void(const Snapshot&)> on_state;
  /// Receive thread: the image that the standby may begin with, and what is left of one that was not
  /// promoted.
  std::function<guest::Residue(const std::string& vm)> take_residue;
  std::function<void(const std::string& vm, guest::Residue)> leave_residue;
  /// Receive thread: the guest runs here now. Takes ownership.
  std::function<void(Promoted)> on_promoted;
  std::function<void(Duration)> on_arbiter_request;
};

class Session {
 public:
  /// Takes over an accepted connection and starts the thread.
  static Result<std::unique_ptr<Session>> start(ScopedFd socket, arbiter::Arbiter& arbiter,
                                                const Options& options, Callbacks callbacks);
  /// Ends the session if it still goes on (the standby is destroyed, nothing is promoted) and joins.
  ~Session();

  /// Operator's order: stop acknowledging, win the right to run, promote. Refused as unsafe before the first
  /// committed epoch.
  Status order_failover();
  /// Operator's order: ask the primary to hand the guest over. `unsafe` unless this is a whole standby.
  Status order_switchover();
  /// Operator's word that the primary runs nowhere: promote without asking the arbiter or the fence agent.
  Status force_failover();
  /// Ends the session and destroys the standby.
  void end(const std::string& reason);

  Snapshot snapshot() const;

 private:
  class Impl;
  explicit Session(std::unique_ptr<Impl> impl);
  Status may_take_over(const std::string& what) const;
  std::unique_ptr<Impl> impl_;
};

}  // namespace remusd::backup
