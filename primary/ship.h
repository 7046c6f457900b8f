// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The ship thread: connects, shakes hands, sends what the epoch thread captured, and drives the core with
// what happens. It owns the link, the sender and the core, starts the epoch thread, and starts a short-lived
// thread for each request to the arbiter. After the link is gone it goes on serving its mailbox until it is
// told to quit.
//
// Locks: mailbox_mutex_ and snapshot_mutex_, never both, never while a callback runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "primary/capture.h"
#include "primary/core.h"
#include "primary/freshness.h"
#include "primary/handshake.h"
#include "primary/input_relay.h"
#include "primary/protection.h"
#include "primary/sender.h"
#include "primary/staging.h"

namespace remusd::primary {

class Ship {
 public:
  struct Config {
    std::string vm;
    Options options;
    Callbacks callbacks;
    uint64_t generation = 0;
    Handshake::Config handshake;
    ckpt::SessionId session{};  // of its HELLO; set by start()
  };
  Ship(guest::Guest& guest, netbuf::NetBuffer& net, arbiter::Arbiter& arbiter, Config config);
  /// REQUIRES: quit() was called when start() was.
  ~Ship();
  Ship(const Ship&) = delete;
  Ship& operator=(const Ship&) = delete;

  /// Takes the staging memory and starts the thread.
  Status start();

  // From any thread.
  void unprotect(const std::string& reason);
  void order(ckpt::OrderKind kind);
  void force();
  void verify_disks();
  Snapshot snapshot() const;
  /// Waits until the state is final, at most until `deadline`.
  bool wait_final(Time deadline) const;
  /// Ends the thread whatever the state is, and joins; output that is held stays held.
  void quit();

 private:
  struct Mailbox {
    std::optional<std::string> unprotect;
    std::optional<ckpt::OrderKind> order;
    bool force = false;
    bool quit = false;
    bool verify_disks = false;
    std::optional<arbiter::Answer> answer;
    bool any() const { return unprotect || order || force || quit || verify_disks || answer; }
  };

  void run();
  void connect();
  bool serve_mail();
  void serve_link(Time now);
  void idle(Time now);
  bool pump(Time now);
  bool pump_handshake();
  void on_step(Sender::Step step, Time now);
  void on_stopped(Time now);
  Status on_frame(const ckpt::FrameView& frame);
  Status on_ready(Time now);
  Status on_seed(const ckpt::FrameView& frame, Time now);
  void release(uint64_t epoch);
  Status on_session_frame(const ckpt::FrameView& frame, Time now);
  void on_epoch(const EpochSample& sample);
  void tick(Time now);
  void let_run();
  void carry_out(const Actions& actions);
  void carry_out(const Action& action);
  void ask(uint64_t expected_generation);
  void start_epochs();
  void start_disks(CaptureOptions* options);
  void send_disks();
  void send_questions();
  void end_disks();
  void begin_verify();
  void freeze_disks();
  void win_disks();
  void tell_settled();
  void send_order();
  void send_goodbye();
  void close_link();
  void publish();
  void wake();

  guest::Guest& guest_;
  netbuf::NetBuffer& net_;
  arbiter::Arbiter& arbiter_;
  Config config_;  // not changed after start(), which takes the handshake's part out of it
  const std::string nonce_;

  // Ship thread only, but for construction.
  std::unique_ptr<Staging> staging_;
  Core core_;
  std::unique_ptr<Handshake> handshake_;      // until READY
  std::unique_ptr<ckpt::Link> link_;          // from the connection to the end, also when it is closed
  std::optional<ckpt::Shadow> shadow_;        // unless deltas are switched off
  std::unique_ptr<disk::Inquiry> inquiry_;    // when the backup tells what its disks hold
  std::unique_ptr<disk::Copier> copier_;      // from the first epoch on, when there are disks
  std::unique_ptr<disk::Verifier> verifier_;  // once it was ordered, the newest
  std::unique_ptr<Sender> sender_;
  std::unique_ptr<Capture> capture_;
  std::unique_ptr<SeedMap> seed_;  // until it is complete; the backup then waits for the first pass
  Time seed_heard_{};
  uint64_t seeded_pages_ = 0;
  ckpt::FrameType pending_type_ = ckpt::FrameType::hello;
  ckpt::Bytes pending_;  // a handshake frame that found no room
  bool pending_set_ = false;
  ckpt::Bytes question_;     // about disks, that found no room
  bool epochs_gone_ = true;  // no epoch thread that will still put items
  bool drain_before_close_ = false;
  std::optional<Time> close_at_;
  bool order_waits_ = false;   // until nothing is on its way to shared storage
  uint64_t told_settled_ = 0;  // of held disks
  bool told_hold_failure_ = false;
  Freshness freshness_;
  uint64_t to_release_ = 0;  // the newest acknowledged epoch; its output leaves on a fresh word of the backup
  Time next_tick_{};
  Time last_ack_{};
  std::array<uint64_t, kEpochReasons.size()> epochs_by_reason_{};
  InputRelay input_;
  double switchover_seconds_ = 0;
  Status stands_;  // why a guest that was won back could not be let run
  Slowness slowness_;
  std::thread arbiter_thread_;

  std::atomic<ckpt::Link*> wake_link_{nullptr};
  mutable std::mutex mailbox_mutex_;
  std::condition_variable mailbox_changed_;
  Mailbox mailbox_;

  mutable std::mutex snapshot_mutex_;
  mutable std::condition_variable snapshot_changed_;
  Snapshot snapshot_;

  std::thread thread_;
};

}  // namespace remusd::primary
