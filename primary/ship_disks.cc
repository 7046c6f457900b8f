// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Ship: what it does for a guest's disks.
#include "primary/ship.h"

namespace remusd::primary {

using ckpt::FrameType;

void Ship::start_disks(CaptureOptions* options) {
  disk::Disks* disks = config_.options.disks;
  if (disks == nullptr) return;
  disks->begin_session(config_.session);
  copier_ = std::make_unique<disk::Copier>(
      disks->files(), disks->tap(), config_.options.disk_sync_bytes_per_second, [this] { wake(); },
      disk::Counterpart{inquiry_.get(), disks->map()});
  if (seed_ == nullptr) send_disks();
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
  if (why.ok() && !runs) {
    verifier_.reset();
    verifier_ = std::make_unique<disk::Verifier>(config_.options.disks->files(), config_.options.disks->tap(),
                                                 *inquiry_);
  }
  const std::lock_guard lock(snapshot_mutex_);
  ++snapshot_.disk_verifies;
  if (why.ok()) return;
  snapshot_.disk_verify = {};
  snapshot_.disk_verify.state = disk::VerifyProgress::State::failed;
  snapshot_.disk_verify.failure = why;
}

/// Nothing is kept for the backup any more, and nothing of the guest waits for it.
void Ship::end_disks() {
  if (copier_) copier_->stop();
  if (inquiry_) inquiry_->stop();
  if (config_.options.disks == nullptr) return;
  config_.options.disks->end_session();
  config_.options.disks->tap().off();
}

}  // namespace remusd::primary
