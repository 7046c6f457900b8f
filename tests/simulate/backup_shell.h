// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The backup's shell in virtual time: what backup/receiver.cc does, in its order of actions, around the real
// core, store and frames. The handshake's answers are given here (the real one prepares real guests); calls
// that block the receive thread there make it deaf for that time here.
#pragma once

#include <deque>
#include <optional>
#include <vector>

#include "backup/core.h"
#include "backup/store.h"
#include "ckpt/frame.h"
#include "tests/simulate/replica_shell.h"

namespace remusd::simulate {

class BackupShell {
 public:
  BackupShell(Node& node, Connection* connection);

  void begin();
  void order_failover();
  void order_switchover();
  void order_end();
  backup::State state() const { return core_.state(); }

 private:
  // Receiver::run().
  void wake();
  void turn();
  void arm_timer();
  void serve_mail();
  bool take_frames();
  void link_failed(const Status& why);
  Status on_frame(const ckpt::FrameView& frame);
  Status on_handshake_frame(const ckpt::FrameView& frame);
  Status on_hello(const ckpt::FrameView& frame);
  void on_admission(const Result<std::optional<arbiter::Record>>& record);
  void standby_prepared();
  Status on_data(const ckpt::FrameView& frame);
  Status on_commit(const ckpt::FrameView& frame);
  void apply_some();
  void feed_disk();
  void send_acks(bool just_decided);
  void note_applied();
  void heartbeat();

  bool perform();
  void send_ack(uint64_t epoch, uint64_t digest);
  void ask_arbiter(uint64_t expected_generation);
  void load();
  std::optional<Guest> restore();
  void promote();
  void end_session();

  template <typename Record>
  void send(ckpt::FrameType type, uint64_t epoch, const Record& record);
  void block(Duration how_long, Task then);
  bool open() const { return connection_->open(host_); }
  bool died() const { return world_.incarnation(host_) != incarnation_; }
  Time now() const { return world_.clock(host_); }

  // Planted bugs (plants.h).
  void plant_before_add(const ckpt::FrameView& frame);
  void plant_after_commit(uint64_t epoch);
  bool deaf() const { return world_.plant(Plant::deaf_detector) && !core_.acking_stopped(); }

  Node& node_;
  Site& site_;
  World& world_;
  const HostId host_;
  const uint32_t incarnation_;
  const std::string nonce_;
  Connection* connection_;
  backup::Core core_;
  backup::Actions actions_;
  ckpt::FrameWriter writer_;
  ckpt::FrameReader reader_;

  enum class Step { hello, definition, facts, done };
  Step step_ = Step::hello;
  uint64_t session_ = 0;  // the checkers' number, once admitted
  ckpt::Hello hello_;
  bool admitted_ = false, refused_ = false;
  Time handshake_deadline_{};

  std::vector<std::byte> memory_;
  std::optional<backup::Store> store_;
  std::unique_ptr<ReplicaShell> replica_;
  std::deque<uint64_t> acks_;  // decided, and waiting for room on the disk
  std::deque<uint64_t> digests_;
  std::optional<Guest> loaded_;  // and stands
  uint64_t image_checked_ = 0;   // newest epoch that the checkers have seen
  ckpt::EpochDigest received_;   // what came, for a plant that believes it

  size_t unread_bytes_ = 0;  // of a frame that has not come whole
  std::optional<arbiter::Answer> mail_answer_;
  bool mail_order_ = false, mail_switchover_ = false, mail_end_ = false;
  bool woken_ = false, blocked_ = false, gone_ = false;
  uint32_t timer_ = 0;
  Time next_heartbeat_ = Time::max();
  ckpt::Bytes body_, wire_;
};

}  // namespace remusd::simulate
