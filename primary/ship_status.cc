// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Ship: what it tells of itself.
#include "primary/ship.h"

namespace remusd::primary {

Snapshot Ship::snapshot() const {
  const std::lock_guard lock(snapshot_mutex_);
  return snapshot_;
}

bool Ship::wait_final(Time deadline) const {
  std::unique_lock lock(snapshot_mutex_);
  return snapshot_changed_.wait_until(lock, deadline, [this] {
    return snapshot_.state == State::unprotected || snapshot_.state == State::fenced ||
           snapshot_.state == State::failed;
  });
}

void Ship::publish() {
  {
    const std::lock_guard lock(snapshot_mutex_);
    snapshot_.state = core_.state();
    snapshot_.end = core_.final() ? core_.end() : Status();
    if (!stands_.ok()) snapshot_.end = stands_.with_context("let the guest run again");
    snapshot_.note = core_.note();
    snapshot_.sealed = core_.sealed_epoch();
    snapshot_.sent = core_.sent_epoch();
    snapshot_.acked = core_.acked_epoch();
    snapshot_.released = core_.released_epoch();
    snapshot_.forced = core_.forced();
    snapshot_.switchover_seconds = switchover_seconds_;
    snapshot_.last_ack = last_ack_;
    snapshot_.slow = slowness_.slow();
    snapshot_.epochs_by_reason = epochs_by_reason_;
    snapshot_.staging_used_bytes = staging_->used_bytes();
    if (shadow_) snapshot_.shadow_used_bytes = shadow_->used_bytes();
    if (sender_) {
      snapshot_.sync_sent_pages = sender_->sync_sent_pages();
      snapshot_.resync_sent_bytes = sender_->sync_sent_bytes();
      snapshot_.last_rtt_seconds = sender_->rtt_seconds();
      snapshot_.link_queue_bytes =
          link_->open() ? config_.options.link.send_queue_bytes - link_->send_space() : 0;
    }
    if (copier_) snapshot_.disk_sync = copier_->progress();
    if (verifier_) snapshot_.disk_verify = verifier_->progress();
    if (capture_) {
      snapshot_.sync_total_pages = capture_->sync_total_pages();
      snapshot_.resync_pages_total = seeded_pages_;
      snapshot_.resync_pages_matched = capture_->matched_pages();
      if (snapshot_.tracker == "none") snapshot_.tracker = capture_->tracker_name();
    }
  }
  snapshot_changed_.notify_all();
}

}  // namespace remusd::primary
