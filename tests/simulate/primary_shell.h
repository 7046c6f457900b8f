// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The primary's shell in virtual time: what primary/ship.cc, sender.cc and capture.cc do, in their order of
// actions, around the real core, handshake, codec and frames. The epoch thread is a chain of events of its
// own; what it hands over waits in a queue as in staging.h.
#pragma once

#include <deque>
#include <optional>

#include "ckpt/disk_codec.h"
#include "ckpt/frame.h"
#include "primary/core.h"
#include "primary/handshake.h"
#include "tests/simulate/node.h"

namespace remusd::simulate {

class PrimaryShell {
 public:
  PrimaryShell(Node& node, uint64_t generation);

  void connect();
  void order_unprotect();
  void order_failover();
  void order_switchover();
  /// Its epoch thread ends for that. False when none runs.
  bool fail_guest(bool gone);
  bool guest_gone() const { return failure_ == Failure::gone; }
  /// After the last epoch of a switchover: it answers nobody.
  bool guest_stands() const { return stands_; }
  /// The guest says something: when that is, for the checkers.
  void stamp(Packet* packet) const;
  primary::State state() const { return core_.state(); }

 private:
  struct Item {  // staging.h
    enum class Kind { pages, disk, sealed, holding, stopped };
    Kind kind;
    uint64_t epoch = 0;
    std::vector<uint64_t> pages;
    ckpt::Bytes data;        // of the pages; a DISK body; device state when sealed
    uint64_t raw_bytes = 0;  // of a DISK body
  };
  enum class Step { idle, blocked, worked, died };

  // The ship thread.
  void wake();
  void turn();
  bool serve_mail();
  void serve_link();
  bool take_frames();
  void link_failed(const Status& why);
  void pump();
  bool pump_handshake();
  Step send_next(bool discard);
  Step send_slot(Item* item, bool discard);
  void heartbeat();
  Status on_frame(const ckpt::FrameView& frame);
  Status on_ack(const ckpt::FrameView& frame);
  bool carry_out(const primary::Actions& actions);
  void carry_out(const primary::Action& action);
  void ask(uint64_t expected_generation);
  void close_link();
  void settle();
  uint64_t send(ckpt::FrameType type, uint64_t epoch, ckpt::View body);
  bool open() const { return connection_ != nullptr && connection_->open(host_); }
  bool died() const { return world_.incarnation(host_) != incarnation_; }
  Time now() const { return world_.clock(host_); }

  // The epoch thread.
  void first_sync();
  void epoch();
  void pause();
  void put_pages(std::vector<uint64_t> pages, uint64_t epoch);
  void put_blocks(const std::vector<uint32_t>& blocks, uint64_t epoch);
  void end_epochs();

  Node& node_;
  Site& site_;
  World& world_;
  const HostId host_;
  const uint32_t incarnation_;
  const uint64_t session_;  // the checkers' number
  const std::string nonce_;
  primary::Core core_;
  std::optional<primary::Handshake> handshake_;
  Connection* connection_ = nullptr;
  ckpt::FrameWriter writer_;
  ckpt::FrameReader reader_;

  bool connected_ = false;  // or given up: before that the ship thread serves nothing
  bool woken_ = false;
  uint32_t timer_ = 0;
  Time next_tick_{}, next_heartbeat_{};
  std::optional<Time> close_at_;
  bool saying_goodbye_ = false;
  bool blocked_ = false;  // the link has no room
  bool gone_ = false;

  bool mail_unprotect_ = false, mail_order_ = false, mail_switchover_ = false;
  std::optional<arbiter::Answer> mail_answer_;

  std::deque<Item> staging_;
  bool told_sealed_ = false, device_sent_ = false;
  ckpt::EpochDigest digest_;
  uint64_t pages_sent_ = 0, raw_bytes_ = 0;
  ckpt::DiskBody disk_body_;
  ckpt::Bytes body_, wire_;

  enum class Failure { none, error, gone };
  Failure failure_ = Failure::none;
  bool in_epoch_ = false, end_wanted_ = false, epochs_ended_ = false;
  bool epochs_run_ = false, stop_epochs_ = false, staging_stopped_ = false;
  bool last_wanted_ = false, stands_ = false;
  uint64_t next_epoch_ = 1;
  uint32_t slots_used_ = 0;
  bool waits_for_slot_ = false;
  uint64_t said_in_ = 0;  // the epoch that the guest is in: 0 before output is held
};

}  // namespace remusd::simulate
