// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Receiver: what it does for the replica of a guest's disks.
#include "backup/receiver.h"

namespace remusd::backup {
namespace {

constexpr Duration kDrainPatience = std::chrono::seconds(30);           // a slow disk is better than none
constexpr size_t kDiskTellRoom = ckpt::kMaxMapBytesTold + (64u << 10);  // a DISK_TELL, and signs of life

}  // namespace

Status Receiver::on_disk_ask(const ckpt::FrameView& frame) {
  ckpt::DiskAsk ask;
  REMUSD_TRY(ckpt::decode(frame.body, &ask));
  if (!disks_) return Status(Code::corrupt, "DISK_ASK, but the guest has no disks");
  return disks_->replica() == nullptr ? Status() : disks_->ask(ask);
}

void Receiver::feed_disks() {
  if (!feed_ || core_.final()) return;
  send_acks(/*just_decided=*/false);
  const bool waits = core_.state() == State::syncing || core_.state() == State::standby;
  if (feed_->kept().over_limit() && waits) {
    return end(Status(Code::exhausted, "the primary has " + std::to_string(feed_->kept().bytes()) +
                                           " bytes to write to shared storage, which is more than is kept "
                                           "here: give both hosts the same disk_buffer_mib"));
  }
  if (disks_->replica() == nullptr) return;
  tell_of_disks();
  const Status failure = disks_->replica()->failure();
  if (!failure.ok() && waits) end(failure.with_context("the replica of its disks is lost"));
}

void Receiver::tell_of_disks() {
  ckpt::Bytes body;
  while (link_->open() && link_->send_space() >= kDiskTellRoom && disks_->told(&body)) {
    if (const Status status = link_->append(ckpt::FrameType::disk_tell, 0, body); !status.ok()) {
      link_->close(status);
      core_.link_lost(status, &actions_);
    }
    body.clear();
  }
}

/// Every epoch that counts is in the files.
Status Receiver::drain_disks() {
  if (!disks_ || disks_->promoted()) return {};
  if (feed_->holds()) {
    REMUSD_TRY(disks_->lock_held(Clock::now() + kDrainPatience).with_context("take over shared storage"));
    REMUSD_TRY(feed_->kept()
                   .apply(disk::media_of(disks_->files()))
                   .with_context("bring what was committed to shared storage"));
  }
  // What is acknowledged is applied, the store has handed all of it over. Whoever gives up loses the guest:
  // only disks that do nothing at all for that long have failed.
  for (;;) {
    const uint64_t before = disks_->replica_stats().applied_runs;
    Status drained = disks_->promote(Clock::now() + kDrainPatience);
    if (drained.code() != Code::timed_out || disks_->replica_stats().applied_runs == before) return drained;
  }
}

}  // namespace remusd::backup
