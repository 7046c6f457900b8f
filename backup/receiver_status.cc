// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Receiver: what it tells of itself.
#include "backup/receiver.h"

namespace remusd::backup {

Snapshot Receiver::snapshot() const {
  const std::lock_guard lock(snapshot_mutex_);
  return snapshot_;
}

void Receiver::publish(bool tell) {
  Snapshot copy;
  {
    const std::lock_guard lock(snapshot_mutex_);
    Snapshot& snapshot = snapshot_;
    snapshot.state = core_.state();
    snapshot.end = core_.why();
    if (!network_.ok()) snapshot.end = network_;
    if (!core_.fence_note().ok()) snapshot.end = core_.fence_note().with_context("not fenced yet");
    snapshot.vm = handshake_.vm();
    snapshot.peer = handshake_.peer();
    snapshot.generation = core_.generation();
    snapshot.acked = core_.acked();
    snapshot.applied = core_.applied();
    snapshot.standby_pid = standby_ ? standby_->pid() : 0;
    snapshot.last_heard = core_.last_heard();
    snapshot.promote_seconds = promote_seconds_;
    snapshot.memory_bytes = ckpt::link_memory_bytes(options_.link, options_.tls != nullptr);
    snapshot.staged_bytes = 0;
    if (disks_) {
      snapshot.disks = disks_->replica_stats();
      snapshot.disks.disks = static_cast<uint32_t>(disks_->files().size());
      snapshot.disks.held = disks_->tap().held_disks();
      if (feed_) snapshot.disks.kept_bytes = feed_->kept().bytes();
    }
    snapshot.memory_bytes += snapshot.disks.memory_bytes();
    if (store_) {
      snapshot.received = store_->staged();
      snapshot.sync_received_bytes = store_->received_bytes();
      snapshot.staged_bytes = store_->staged_bytes();
      snapshot.staging_limit_bytes = 2 * store_->limit_bytes();
      snapshot.memory_bytes += store_->memory_bytes();
    }
    copy = snapshot;
  }
  if (tell && callbacks_.on_state) callbacks_.on_state(copy);
}

}  // namespace remusd::backup
