// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The backup's side of a session's beginning, from HELLO to READY. It checks all that can be checked before
// the first page: version, admission, boot files, and the facts of the standby against those of the running
// guest.
//
//   hello -> definition -> files (skipped when none is missing) -> facts -> done, or refused
//
// A refusal is told to the peer in one REFUSE frame; bytes that cannot be trusted get no answer at all.
// Not thread-safe: it belongs to the receive thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backup/boot_files.h"
#include "backup/session.h"
#include "ckpt/link.h"
#include "guest/guest.h"

namespace remusd::backup {

class Handshake {
 public:
  using Admit = std::function<Status(const std::string& vm, const std::string& peer, uint64_t generation)>;
  /// `disks_changed`: as disk::Replica's, from any thread.
  Handshake(ckpt::Link& link, const Options& options, Admit admit, std::function<void()> disks_changed);

  /// A mandatory frame of the handshake. A failing Status is for a peer that cannot be trusted. Blocks while
  /// the standby is prepared (FACTS).
  Status on_frame(const ckpt::FrameView& frame);

  bool admitted() const { return generation_ > 0; }
  bool done() const { return step_ == Step::done; }
  /// Not ok: REFUSE with this is queued; nothing follows.
  const Status& refusal() const { return refusal_; }

  const std::string& vm() const { return vm_; }
  const std::string& peer() const { return peer_; }
  uint64_t generation() const { return generation_; }
  uint64_t features() const { return features_; }  // those that both sides have
  /// What came with it, once done(). take_standby() may be called once.
  const guest::Definition& definition() const { return definition_; }
  std::unique_ptr<guest::Standby> take_standby() { return std::move(standby_); }
  /// Null for a guest without disks. The standby is connected to them: it goes before they do.
  std::shared_ptr<disk::Disks> take_disks() { return std::move(disks_); }
  size_t staging_limit_bytes() const { return staging_limit_bytes_; }

 private:
  enum class Step { hello, definition, files, facts, done, refused };

  Status on_hello(const ckpt::FrameView& frame);
  Status on_definition(const ckpt::FrameView& frame);
  Status on_file(const ckpt::FrameView& frame);
  Status on_facts(const ckpt::FrameView& frame);
  Status open_disks();
  template <typename Record>
  Status send(ckpt::FrameType type, const Record& record);
  /// Tells the peer why not; ok unless even that cannot be sent.
  Status refuse(const Status& why);

  ckpt::Link& link_;
  const Options& options_;
  Admit admit_;
  std::function<void()> disks_changed_;
  Step step_ = Step::hello;
  Status refusal_;
  std::string vm_, peer_;
  uint64_t generation_ = 0;
  uint64_t features_ = 0;
  ckpt::SessionId session_{};
  guest::Definition definition_;
  BootFiles files_;
  std::shared_ptr<disk::Disks> disks_;
  std::unique_ptr<guest::Standby> standby_;
  size_t staging_limit_bytes_ = 0;
};

}  // namespace remusd::backup
