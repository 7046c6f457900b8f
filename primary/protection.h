// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One protected guest on its primary: the thin shell around the pure core (core.h). It owns the epoch thread
// (pause, scan, copy, resume) and the ship thread (encode, link, core). Guest, NetBuffer and Arbiter are
// borrowed and must outlive it.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>

#include "arbiter/arbiter.h"
#include "ckpt/epoch_sample.h"
#include "ckpt/link.h"
#include "disk/copier.h"
#include "disk/disks.h"
#include "disk/verifier.h"
#include "guest/guest.h"
#include "netbuf/net_buffer.h"
#include "primary/pacer.h"
#include "primary/slowness.h"

namespace remusd::primary {

/// protecting: the pair is whole and output is held. deciding: the backup is lost or we are leaving, output
/// stays held, the arbiter is asked. frozen: its answer is unknown, asked again. The last three are final:
/// unprotected: the guest runs on here and is heard (also when protection never came about: end tells why).
/// fenced: another node runs it, our copy was destroyed. failed: the guest itself is gone; the backup was
/// told to take over when it had a checkpoint.
enum class State { connecting, syncing, protecting, deciding, frozen, unprotected, fenced, failed };
std::string_view to_string(State state);

struct Options {
  std::string node;          // our name
  std::string peer;          // the backup's name
  std::string peer_address;  // "host:port"
  PaceOptions pace;
  bool precopy = true;  // where it pays (precopy.h)
  Duration heartbeat_interval = std::chrono::milliseconds(20);
  int heartbeat_lost = 5;  // intervals of silence
  Duration connect_timeout = std::chrono::seconds(5);
  Duration handshake_timeout = std::chrono::seconds(60);  // the peer starts its standby meanwhile
  Duration arbiter_timeout = std::chrono::seconds(2);
  Duration ack_timeout = std::chrono::seconds(10);  // a backup that lives but acknowledges nothing is lost
  SlowOptions slow;
  size_t staging_bytes = 128u << 20;  // copies of dirty pages waiting to be shipped
  size_t shadow_bytes = 128u << 20;   // copies of what the backup has, for deltas; 0: no deltas
  bool seed = true;                   // ask the backup what it has, and send only what differs
  ckpt::LinkOptions link;
  std::shared_ptr<ckpt::TlsContext> tls;  // none: plain text
  uint64_t sync_threshold_pages = 2048;   // first sync: stop for the first checkpoint below this
  int sync_rounds = 8;                    // or after so many passes
  disk::Disks* disks = nullptr;           // the guest's; borrowed, outlives the Protection. null: it has none
  uint64_t disk_sync_bytes_per_second = 0;  // their first sync, at most; 0: no limit
  std::string record_path;  // when set, everything sent is also written there (for tests/verify_stream.py)
};

struct Snapshot {
  State state = State::connecting;
  Status end;  // why it ended, for the final states
  uint64_t generation = 0;
  uint64_t sealed = 0, sent = 0, acked = 0, released = 0;
  uint64_t sync_sent_pages = 0, sync_total_pages = 0;  // first sync; pages that the backup had are in both
  // Of the pages that the standby began with, those that were right; and all that the first epoch took.
  uint64_t resync_pages_total = 0, resync_pages_matched = 0, resync_sent_bytes = 0;
  double switchover_seconds = 0;  // from the guest's standing here to the word that it runs there; 0: none
  bool forced = false;            // it runs alone on an operator's word
  double last_rtt_seconds = 0;
  Time last_ack{};
  bool slow = false;                                              // the backup is, at present (slowness.h)
  std::array<uint64_t, kEpochReasons.size()> epochs_by_reason{};  // acknowledged ones
  uint64_t staging_used_bytes = 0, staging_limit_bytes = 0, link_queue_bytes = 0;
  uint64_t shadow_used_bytes = 0, shadow_limit_bytes = 0;
  uint64_t memory_bytes = 0;     // what this protection holds beyond the guest's own, at most
  disk::CopyProgress disk_sync;  // zeros without disks
  disk::VerifyProgress disk_verify;
  uint64_t disk_verifies = 0;  // that were ordered; the newest is what disk_verify tells of
  std::string tracker;
  std::string note;  // why an order was not followed, or what the arbiter said last; empty: nothing
};

struct Callbacks {
  /// Ship thread, once per acknowledged epoch. Must not block.
  std::function<void(const EpochSample&)> on_epoch;
  /// Any thread of the Protection, at each change of state; the last call carries a final state.
  std::function<void(const Snapshot&)> on_state;
  /// Epoch thread, between two epochs: the guest did something by itself. Must not block.
  std::function<void(const guest::Event&)> on_guest_event;
  /// Arbiter thread: how long a request took.
  std::function<void(Duration)> on_arbiter_request;
};

class Protection {
 public:
  /// Wins the next generation from the arbiter, then starts the threads and returns; connecting, the gate and
  /// the first sync go on in the background and are told through on_state. On failure nothing has changed.
  static Result<std::unique_ptr<Protection>> start(guest::Guest& guest, const guest::Definition& definition,
                                                   netbuf::NetBuffer& net, arbiter::Arbiter& arbiter,
                                                   const Options& options, Callbacks callbacks);
  /// Stops the threads. A Protection that has not ended is ended as by unprotect() first.
  ~Protection();

  /// Ends protection in order: wins the next generation, tells the backup goodbye, lets output pass. Does not
  /// wait.
  void unprotect(const std::string& reason);
  /// Orders the backup to take over. Does not wait; the state becomes fenced when it has.
  void order_failover();
  /// The same after a last epoch, from which on the guest stands: nothing that it did is lost, and what comes
  /// for it meanwhile is passed on. When the backup does not take over within 2 s the guest runs on here.
  void order_switchover();
  /// Compares the guest's disks with their replica while it runs; Snapshot::disk_verify tells what came of
  /// it. Does not wait.
  void verify_disks();
  /// Takes an operator's word that nobody else runs the guest, where the right to run is being decided.
  void force();
  /// Ends the threads: the guest and its gate are not touched any more, whoever else still holds this object
  /// to look at its snapshot. Not at the same time from two threads. REQUIRES: a final state was told.
  void join();

  Snapshot snapshot() const;

 private:
  class Impl;
  explicit Protection(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace remusd::primary
