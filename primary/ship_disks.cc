// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The ship thread: what it does about the guest's disks.
#include <algorithm>

#include "primary/ship.h"

namespace remusd::primary {
namespace {

using ckpt::FrameType;

/// How long output may wait, once the right to run was won, for what is kept of held disks to be on them.
constexpr Duration kDrainDisks = std::chrono::seconds(5);

}  // namespace
void Ship::start_disks(CaptureOptions* options) {
  disk::Disks* disks = config_.options.disks;
  if (disks == nullptr) return;
  disks->begin_session(config_.session);
  copier_ = std::make_unique<disk::Copier>(
      disks->files(), disks->tap(), config_.options.disk_sync_bytes_per_second, [this] { wake(); },
      disk::Counterpart{inquiry_.get(), disks->map()});
  if (seed_ == nullptr) send_disks();
  guest_.served_by(disks->server_thread());
  options->tap = &disks->tap();
  options->copier = copier_.get();
}

/// Nothing of an epoch may come before the backup has told all that it has.
void Ship::send_disks() {
  sender_->use_disks(&config_.options.disks->tap(), copier_.get());
}

void Ship::send_questions() {
  while (!question_.empty() || (inquiry_ && inquiry_->next(&question_))) {
    if (!sender_->send(FrameType::disk_ask, 0, question_).ok()) return;  // No room, or closed: wait() tells.
    question_.clear();
  }
}

/// What keeps it from beginning is told where its outcome would be.
void Ship::begin_verify() {
  const bool runs = verifier_ && !verifier_->ended();
  Status why;
  if (core_.state() != State::protecting || core_.acked_epoch() == 0) {
    why = {Code::unavailable, "the guest is not protected"};
  } else if (!inquiry_) {
    why = {Code::unsupported, config_.options.disks == nullptr
                                  ? "the guest has no disks"
                                  : "backup " + config_.options.peer + " cannot tell what its disks hold"};
  } else if (!runs && !inquiry_->idle()) {
    why = {Code::unavailable, "a question to the backup is still open"};
  }
  if (!runs) verifier_.reset();
  if (why.ok() && !runs) {
    verifier_ = std::make_unique<disk::Verifier>(config_.options.disks->files(), config_.options.disks->tap(),
                                                 *inquiry_);
  }
  // The number and what it stands for change together: whoever waits for it sees nothing of the one before.
  const std::lock_guard lock(snapshot_mutex_);
  ++snapshot_.disk_verifies;
  snapshot_.disk_verify = verifier_ ? verifier_->progress() : disk::VerifyProgress();
  if (why.ok()) return;
  snapshot_.disk_verify.state = disk::VerifyProgress::State::failed;
  snapshot_.disk_verify.failure = why;
}

/// Nothing is kept for the backup any more, and nothing of the guest waits for it; but for what is kept of
/// held disks, about which the right to run decides: freeze_disks(), win_disks(), or Tap::lost().
void Ship::end_disks() {
  if (copier_) copier_->stop();
  if (inquiry_) inquiry_->stop();
  if (config_.options.disks == nullptr) return;
  config_.options.disks->end_session();
  config_.options.disks->tap().off();
}

/// The right to run is being decided: nothing is written to storage that the backup sees, too.
void Ship::freeze_disks() {
  if (config_.options.disks != nullptr) config_.options.disks->tap().freeze();
}

/// What the guest was told to be on its disks is on them before anybody outside hears of it, where that does
/// not take too long: the guest's own flushes wait in any case.
void Ship::win_disks() {
  if (config_.options.disks == nullptr) return;
  disk::Tap& tap = config_.options.disks->tap();
  tap.won();
  (void)tap.await_passing(Clock::now() + kDrainDisks);
}

void Ship::tell_settled() {
  if (config_.options.disks == nullptr || !capture_ || !core_.link_wanted()) return;
  const disk::Tap& tap = config_.options.disks->tap();
  if (const Status failure = tap.hold_failure(); !failure.ok() && !told_hold_failure_) {
    told_hold_failure_ = true;
    carry_out(
        core_.unprotect("a held disk is broken: what the guest wrote was acknowledged to it, and cannot "
                        "be written to shared storage: " +
                            failure.message(),
                        Clock::now()));
  }
  // In this order: what is quiet settles nothing more.
  const bool quiet = order_waits_ && tap.quiet();
  const uint64_t epoch = std::min(tap.settled_epoch(), core_.acked_epoch());
  if (epoch > told_settled_ && !close_at_) {
    ckpt::Bytes body;
    ckpt::encode(ckpt::Settled{epoch}, &body);
    if (!sender_->send(FrameType::settled, 0, body).ok()) return;  // No room: later.
    told_settled_ = epoch;
  }
  if (!quiet) return;
  order_waits_ = false;
  send_order();
}

void Ship::send_order() {
  ckpt::Bytes body;
  ckpt::encode(ckpt::Order{core_.planned() ? ckpt::OrderKind::switchover : ckpt::OrderKind::failover}, &body);
  if (const Status status = sender_->send(FrameType::order, 0, body); !status.ok())
    carry_out(core_.link_lost(status.with_context("order the backup to take over"), Clock::now()));
}

}  // namespace remusd::primary
