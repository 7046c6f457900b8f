// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The shell around the core: one thread ("recv") that owns the link, the handshake, the store and the
// standby, tells the core what happened and carries out what it decides. Frames are looked at inside
// Link::wait(); the actions that follow from them are carried out after it, in order.
//
// The thread blocks in the link while that is open and in the mailbox afterwards. Two calls may hold it
// longer: preparing the standby (before the detector starts) and the promotion (or, in a switchover, loading
// and promotion). Applying goes on in slices between waits, so that heartbeats leave on time.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "backup/core.h"
#include "backup/disk_feed.h"
#include "backup/handshake.h"
#include "backup/mailbox.h"
#include "backup/passed_input.h"
#include "backup/promotion.h"
#include "backup/requests.h"
#include "backup/seed.h"
#include "backup/session.h"
#include "backup/store.h"
#include "ckpt/link.h"

namespace remusd::backup {

class Receiver {
 public:
  Receiver(std::unique_ptr<ckpt::Link> link, arbiter::Arbiter& arbiter, const Options& options,
           Callbacks callbacks);

  /// The thread's body; returns when the session is over.
  void run();

  // From any thread.
  Mailbox& mailbox() { return mailbox_; }
  Snapshot snapshot() const;

 private:
  Status admit(const std::string& vm, const std::string& peer, uint64_t generation);
  // Events.
  void serve_mail();
  /// True when frames came.
  bool wait();
  Status on_frame(const ckpt::FrameView& frame);
  Status on_handshake_frame(const ckpt::FrameView& frame);
  Status on_data(const ckpt::FrameView& frame);
  Status on_heartbeat(const ckpt::FrameView& frame);
  Status on_order(const ckpt::FrameView& frame);
  Status on_input(const ckpt::FrameView& frame);
  Status on_disk_ask(const ckpt::FrameView& frame);
  Status on_settled(const ckpt::FrameView& frame);
  void after_handshake_step();
  Status named(const Status& why) const;
  void apply_some();
  void note_applied();
  void feed_disks();
  void tell_of_disks();
  Status drain_disks();
  void seed_some();
  bool may_seed() const;
  void watch_standby();
  void end(const Status& why);
  void send_signs_of_life();
  Time next_deadline() const;

  // Actions.
  void perform();
  void send_acks(bool just_decided);
  void ask_arbiter(uint64_t expected_generation);
  void load();
  void promote();
  void tell_end(const Status& why);
  void take_over_input(netbuf::NetBuffer& net);
  void destroy_standby();
  template <typename Record>
  void send(ckpt::FrameType type, uint64_t epoch, const Record& record);
  /// Waits until what is queued has left (or, `until_closed`, until the peer has closed) or `patience` is
  /// over.
  void flush(Duration patience, bool until_closed);
  void publish(bool tell);

  const Options options_;
  const Callbacks callbacks_;
  arbiter::Arbiter& arbiter_;
  const std::string nonce_;
  std::unique_ptr<ckpt::Link> link_;
  Mailbox mailbox_;
  Core core_;
  Actions actions_;  // decided, not yet carried out
  Handshake handshake_;
  std::shared_ptr<disk::Disks> disks_;  // of the guest; null: it has none
  std::unique_ptr<guest::Standby> standby_;
  Promotion promotion_;           // of standby_
  std::optional<DiskFeed> feed_;  // to disks_->replica()
  std::optional<Store> store_;    // over standby_->memory()
  std::optional<Seeder> seeder_;  // until everything is told; over the same memory
  std::deque<uint64_t> digests_;  // of epochs whose ack is not yet sent
  std::deque<uint64_t> acks_;     // decided, and waiting for room on the disks
  PassedInput input_;             // in a switchover

  const Time handshake_deadline_;
  const Time hello_deadline_;
  Time next_heartbeat_ = Time::max();
  Time next_progress_ = Time::max();
  Time next_look_{};           // at the standby
  uint64_t peer_sent_ns_ = 0;  // of its newest heartbeat
  Time peer_heard_at_{};
  Time won_at_{};
  double promote_seconds_ = 0;
  Status network_;  // of the promoted guest

  mutable std::mutex snapshot_mutex_;
  Snapshot snapshot_;
  Requests requests_;  // last: its threads use the rest
};

}  // namespace remusd::backup
