// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// GuestHost: what status() says.
#include "control/guest_host.h"

namespace remusd::control {
namespace {

Quantiles quantiles(std::vector<double> values) {
  return {quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1)};
}

}  // namespace

GuestStatus GuestHost::status() const {
  GuestStatus now;
  std::shared_ptr<primary::Protection> protection;
  std::shared_ptr<SessionSlot> slot;
  EpochWindow window;
  std::shared_ptr<disk::Disks> disks;
  {
    const std::lock_guard lock(mutex_);
    now = rest_;
    protection = protection_;
    slot = session_;
    window = window_;
    disks = disks_;
  }
  // The engine's own locks are taken without ours.
  now.residue_bytes = context_.residues.bytes(name_);
  now.pause_ms = quantiles(window.pause_ms());
  now.interval_ms = quantiles(window.interval_ms());
  now.commit_ms = quantiles(window.commit_ms());
  now.dirty_pages = quantiles(window.dirty_pages());
  if (disks != nullptr) fill_disks(*disks, &now.disks);
  if (protection != nullptr) fill_primary(protection->snapshot(), &now);
  fill_reprotect(&now);
  if (slot != nullptr) {
    const auto session = slot->session();
    fill_backup(session != nullptr ? session->snapshot() : slot->last(), &now);
  }
  if (now.live) now.transport = context_.tls.insecure() ? "plain" : "tls";
  return now;
}

void GuestHost::fill_primary(const primary::Snapshot& snapshot, GuestStatus* status) const {
  status->live = !is_final(snapshot.state);
  status->state = status_word(snapshot.state);
  if (snapshot.state == primary::State::unprotected) {
    const std::lock_guard lock(mutex_);
    if (snapshot.acked == 0 && !ever_protected_) status->state = "running";
    if (protection_ != nullptr && !is_final(last_protection_.state)) status->state = "deciding";
  }
  status->generation = snapshot.generation;
  status->sealed = snapshot.sealed;
  status->sent = snapshot.sent;
  status->acked = snapshot.acked;
  status->released = snapshot.released;
  status->epochs_by_reason = snapshot.epochs_by_reason;
  status->slow = snapshot.slow && status->live;
  status->tracker = snapshot.tracker;
  status->switchover_ms = snapshot.switchover_seconds * 1e3;
  status->sync_sent_pages = snapshot.sync_sent_pages;
  status->sync_total_pages = snapshot.sync_total_pages;
  status->resync_pages_total = snapshot.resync_pages_total;
  status->resync_pages_matched = snapshot.resync_pages_matched;
  status->resync_sent_bytes = snapshot.resync_sent_bytes;
  status->memory_bytes = snapshot.memory_bytes;
  status->staging_used_bytes = snapshot.staging_used_bytes;
  status->staging_limit_bytes = snapshot.staging_limit_bytes;
  status->shadow_used_bytes = snapshot.shadow_used_bytes;
  status->shadow_limit_bytes = snapshot.shadow_limit_bytes;
  status->link_queue_bytes = snapshot.link_queue_bytes;
  status->disks.sync_total_bytes = snapshot.disk_sync.total_bytes;
  status->disks.sync_copied_bytes = snapshot.disk_sync.copied_bytes;
  status->disks.sync_sent_bytes = snapshot.disk_sync.sent_bytes;
  status->disks.sync_changed_bytes = snapshot.disk_sync.changed_bytes;
  status->disks.sync_by_map = snapshot.disk_sync.by_map;
  status->disks.verify = snapshot.disk_verify;
  status->disks.verifies = snapshot.disk_verifies;
  status->heartbeat_rtt_seconds = snapshot.last_rtt_seconds;
  if (!snapshot.end.message().empty()) {
    status->reason = snapshot.end.message();
    status->reason_code = to_string(snapshot.end.code());
  }
}

// After what the engine says: whoever sees the end of a protection sees what follows from it, too.
void GuestHost::fill_reprotect(GuestStatus* status) const {
  const std::lock_guard lock(mutex_);
  status->reprotect.wanted = reprotect_.wanted();
  if (!reprotect_.wanted()) return;
  status->reprotect.peer = reprotect_.target().peer;
  status->reprotect.attempts = reprotect_.attempts();
  status->reprotect.next_in = reprotect_.next_in(Clock::now());
  status->reprotect.last_error = reprotect_.last_error();
}

void GuestHost::fill_backup(const backup::Snapshot& snapshot, GuestStatus* status) {
  status->live = !is_final(snapshot.state);
  status->state = status_word(snapshot.state);
  status->generation = std::max(status->generation, snapshot.generation);
  status->received = snapshot.received;
  status->acked = snapshot.acked;
  status->applied = snapshot.applied;
  status->promote_ms = snapshot.promote_seconds * 1e3;
  status->memory_bytes = snapshot.memory_bytes;
  status->staging_used_bytes = snapshot.staged_bytes;
  status->staging_limit_bytes = snapshot.staging_limit_bytes;
  if (snapshot.disks.disks > 0) {
    status->disks.modes.clear();
    for (uint32_t i = 0; i < snapshot.disks.disks; ++i)
      status->disks.modes.push_back(disk_mode((snapshot.disks.held >> i & 1U) != 0));
  }
  status->disks.kept_bytes = snapshot.disks.kept_bytes;
  status->disks.behind_bytes = snapshot.disks.behind_bytes;
  status->disks.applied_bytes = snapshot.disks.applied_bytes;
  status->disks.applied_epoch = snapshot.disks.applied_epoch;
  status->disks.durable_epoch = snapshot.disks.durable_epoch;
  status->reason = snapshot.end.message();
  status->reason_code = to_string(snapshot.end.code());
}

}  // namespace remusd::control
