// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/replica.h"

#include <algorithm>
#include <string>

#include "ckpt/disk_codec.h"
#include "ckpt/fail_point.h"
#include "ckpt/thread.h"
#include "disk/digests.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;

/// Of a first sync, flushed now and then: the flush that ends it is then a short one.
constexpr uint64_t kFlushSyncedBytes = 256u << 20;
/// Of the log: what a replay takes, and what a flush of the disks has to bring to the medium, stay small.
constexpr uint64_t kMostLiveBytes = 64u << 20;

}  // namespace

Result<std::unique_ptr<Replica>> Replica::open(Media disks, std::shared_ptr<Medium> journal,
                                               const ReplicaOptions& options, std::function<void()> changed) {
  REMUSD_ASSIGN(Journal opened, Journal::open(*journal, sizes_of(disks)));
  return std::unique_ptr<Replica>(
      new Replica(std::move(disks), std::move(journal), std::move(opened), options, std::move(changed)));
}

Replica::Replica(Media disks, std::shared_ptr<Medium> file, Journal journal, const ReplicaOptions& options,
                 std::function<void()> changed)
    : options_(options),
      disks_(std::move(disks)),
      file_(std::move(file)),
      changed_(std::move(changed)),
      journal_(std::move(journal)),
      log_bytes_(journal_.log_bytes()),
      replica_([this] {
        begin_thread("replica");
        run_replica();
      }),
      journaler_([this] {
        begin_thread("journal");
        run_journal();
      }) {}

Replica::~Replica() {
  {
    const Lock lock(mutex_);
    quit_ = true;
  }
  wake_both();
  replica_.join();
  journaler_.join();
}

Status Replica::give_up(Code code, const std::string& why) {
  Lock lock(mutex_);
  fail(lock, {code, why}, false);
  return failure_;
}

Status Replica::take(Kind kind, uint64_t epoch, uint64_t generation, std::vector<Bytes>&& bodies) {
  if (queued_bytes() > kHardLimit * limit_bytes() + options_.beyond_bytes)
    return give_up(Code::exhausted, "the disks are behind by " + std::to_string(queued_bytes()) + " bytes");
  Item item{kind, epoch, generation, std::move(bodies)};
  item.kept_bytes = sizeof item + item.bodies.capacity() * sizeof(Bytes);
  for (const Bytes& body : item.bodies) {
    item.kept_bytes += body.capacity();
    item.body_bytes += body.size();
  }
  {
    const Lock lock(mutex_);
    REMUSD_ASSERT(!draining_, "nothing is committed after drain()");
    REMUSD_TRY(failure_);
    queued_bytes_ += item.kept_bytes;
    stats_.behind_bytes += item.body_bytes;
    if (kind != Kind::sync) committed_epoch_ = epoch;
    if (over_limit()) tell_room_ = true;
    items_.push_back(std::move(item));
    ++taken_;
  }
  if (kind == Kind::epoch) fail_point("disk.received");
  wake_.notify_all();
  return {};
}

Status Replica::sync(Bytes&& body) {
  REMUSD_ASSERT(committed_epoch_ == 0, "a first sync ends with epoch 1");
  std::vector<Bytes> bodies;
  bodies.push_back(std::move(body));
  return take(Kind::sync, 0, 0, std::move(bodies));
}

Status Replica::commit(uint64_t epoch, std::vector<Bytes>&& bodies, uint64_t generation) {
  REMUSD_TRY(failure());
  REMUSD_ASSERT(epoch == committed_epoch_ + 1, "epochs come in order, each once");
  if (epoch == 1) {
    if (!bodies.empty()) REMUSD_TRY(take(Kind::sync, 0, 0, std::move(bodies)));
    return take(Kind::first, 1, generation, {});
  }
  if (const uint64_t bytes = epoch_bytes(bodies); bytes > log_bytes_)
    return give_up(Code::invalid, "epoch " + std::to_string(epoch) + " takes " + std::to_string(bytes) +
                                      " bytes of the journal, which has " + std::to_string(log_bytes_) +
                                      ": make it larger");
  return take(Kind::epoch, epoch, generation, std::move(bodies));
}

Status Replica::ask(const ckpt::DiskAsk& ask) {
  if (ask.disk >= disks_.size() || ask.offset >= disks_[ask.disk]->bytes())
    return {Code::corrupt, "what is asked for lies outside the disks"};
  Item item{Kind::ask, 0, 0, {}};
  item.ask = std::make_unique<ckpt::DiskAsk>(ask);
  item.kept_bytes = sizeof item + sizeof ask;
  {
    const Lock lock(mutex_);
    if (draining_ || !failure_.ok()) return {};  // Nobody waits for it any more.
    REMUSD_TRY(answers_.asked());
    queued_bytes_ += item.kept_bytes;
    item.epoch = committed_epoch_;
    items_.push_back(std::move(item));
    ++taken_;
  }
  wake_both();
  return {};
}

bool Replica::await_room(Time deadline) {
  Lock lock(mutex_);
  wake_.wait_until(lock, deadline, [this] { return !over_limit() || !failure_.ok(); });
  return !over_limit() && failure_.ok();
}

Status Replica::drain(Time deadline) {
  Lock lock(mutex_);
  REMUSD_ASSERT(committed_epoch_ >= 1, "there is a committed disk");
  draining_ = true;
  wake_both();
  if (!wake_.wait_until(lock, deadline, [this] { return disk_failed_ || applied_ == taken_; }))
    return {Code::timed_out, "the disks did not take what was committed in time: epoch " +
                                 std::to_string(committed_epoch_) + " is committed, " +
                                 std::to_string(applied_epoch_) + " is in the files"};
  return disk_failed_ ? failure_ : Status();
}

void Replica::release() {
  {
    const Lock lock(mutex_);
    REMUSD_ASSERT(draining_ && applied_ == taken_, "drain() comes first");
    release_asked_ = true;
  }
  wake_.notify_all();
}

Status Replica::await_release(Time deadline) {
  Lock lock(mutex_);
  REMUSD_ASSERT(release_asked_, "release() comes first");
  const bool ended = wake_.wait_until(lock, deadline, [this] { return released_ || !failure_.ok(); });
  if (released_) return {};
  return ended ? failure_ : Status(Code::timed_out, "the disks were not flushed in time");
}

Status Replica::failure() const {
  const Lock lock(mutex_);
  return failure_;
}

ReplicaStats Replica::stats() const {
  const Lock lock(mutex_);
  ReplicaStats stats = stats_;
  stats.committed_epoch = committed_epoch_;
  stats.applied_epoch = applied_epoch_;
  stats.durable_epoch = durable_epoch_;
  stats.queued_bytes = queued_bytes_;
  stats.limit_bytes = limit_bytes();
  stats.applied_bytes = applied_bytes_;
  stats.applied_runs = applied_runs_;
  return stats;
}

/// An epoch that was taken is the journal's first: take() spares the other thread the waking.
void Replica::wake_both() {
  wake_.notify_all();
  to_apply_.notify_all();
}

/// Frees what both threads are done with.
void Replica::forget_done(Lock& lock) {
  while (first_ < std::min(logged_, applied_)) {
    queued_bytes_ -= items_.front().kept_bytes;
    items_.pop_front();
    ++first_;
  }
  if (tell_room_ && !over_limit()) {
    tell_room_ = false;
    tell(lock);
  }
}

/// Tells both threads and whoever waits, and the owner.
void Replica::tell(Lock& lock) {
  lock.unlock();
  wake_both();
  if (changed_) changed_();
  lock.lock();
}

void Replica::fail(Lock& lock, const Status& status, bool of_disk) {
  disk_failed_ = disk_failed_ || of_disk;
  if (failure_.ok()) failure_ = status;
  tell(lock);
}

// ---- The thread "replica".

/// Before an epoch is in the journal only drain() may bring it to the disks; before the journal says that the
/// disks are inconsistent nobody may.
bool Replica::may_apply() {
  if (disk_failed_ || applied_ == taken_) return false;
  if (draining_ && item(applied_).kind != Kind::sync) return true;
  return failure_.ok() && applied_ < logged_;
}

void Replica::run_replica() {
  Lock lock(mutex_);
  for (;;) {
    to_apply_.wait(lock, [this] { return quit_ || may_apply(); });
    if (quit_) return;
    const Item& next = item(applied_);
    lock.unlock();
    const Status status = apply(next);
    lock.lock();
    if (!status.ok()) {
      fail(lock, status, true);
      continue;
    }
    stats_.behind_bytes -= next.body_bytes;
    if (next.kind == Kind::ask) {
      tell(lock);
    } else if (next.kind == Kind::sync) {
      stats_.synced_body_bytes += next.body_bytes;
      unflushed_bytes_ += next.body_bytes;
    } else {
      applied_epoch_ = next.epoch;
    }
    ++applied_;
    wake_.notify_all();
    forget_done(lock);
  }
}

Status Replica::apply(const Item& item) {
  if (item.kind == Kind::ask) {
    Bytes body;
    REMUSD_TRY(tell_blocks(*disks_[item.ask->disk], *item.ask, applied_epoch_, &body));
    answers_.put(std::move(body));
  }
  for (const Bytes& body : item.bodies) {
    REMUSD_TRY(ckpt::apply_disk(body, [this](const ckpt::DiskRun& run) {
      applied_bytes_ += run.bytes;
      ++applied_runs_;
      Status written = write_run(*disks_[run.disk], run);
      fail_point("disk.half_applied");
      return written;
    }));
  }
  fail_point("disk.applied");
  return {};
}

// ---- The thread "journal".

bool Replica::may_log() {
  if (!failure_.ok() || logged_ == taken_) return false;
  if (!draining_ || item(logged_).kind == Kind::sync || item(logged_).kind == Kind::ask) return true;
  // Then what is left to do is to log what drain() goes ahead of; there may be no time to make room for it.
  return item(logged_).kind == Kind::epoch && !log_full_;
}

void Replica::run_journal() {
  Lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return quit_ || may_release() || may_log(); });
    if (quit_) return;
    const Status status = may_release() ? let_go(lock) : log_next(lock);
    stats_.journal_bytes = journal_.written_bytes();
    stats_.journal_live_bytes = released_ ? 0 : journal_.live_bytes();
    if (!status.ok()) fail(lock, status, disk_flush_failed_);
    wake_both();
    forget_done(lock);
  }
}

Status Replica::log_next(Lock& lock) {
  switch (item(logged_).kind) {
    case Kind::sync:
      return log_syncs(lock);
    case Kind::first:
      return log_first(lock);
    case Kind::ask:
      ++logged_;
      return {};
    case Kind::epoch:
      break;
  }
  return log_epochs(lock);
}

Status Replica::flush_disks(Lock& lock) {
  unflushed_bytes_ = 0;
  lock.unlock();
  Status status = flush_all(disks_);
  lock.lock();
  stats_.disk_flushes += disks_.size();
  disk_flush_failed_ = !status.ok();
  return status;
}

Status Replica::log_syncs(Lock& lock) {
  if (!marked_) {
    lock.unlock();
    const Status status = journal_.mark_inconsistent(options_.session, options_.generation);
    lock.lock();
    REMUSD_TRY(status);
    fail_point("disk.marked");
    marked_ = true;
  } else if (unflushed_bytes_ >= kFlushSyncedBytes) {
    REMUSD_TRY(flush_disks(lock));
  }
  while (logged_ < taken_ && item(logged_).kind == Kind::sync) ++logged_;
  return {};
}

Status Replica::log_first(Lock& lock) {
  wake_.wait(lock, [this] { return quit_ || !failure_.ok() || applied_ >= logged_; });
  if (quit_ || !failure_.ok() || draining_) return {};
  REMUSD_TRY(flush_disks(lock));
  if (draining_) return {};  // they may hold more than epoch 1 already
  const uint64_t generation = item(logged_).generation;
  lock.unlock();
  const Status status = journal_.start(options_.session, 1, generation);
  lock.lock();
  REMUSD_TRY(status);
  fail_point("disk.begun");
  log_epoch_ = durable_epoch_ = 1;
  log_generation_ = generation;
  ++logged_;
  tell(lock);
  return {};
}

/// All that wait and have room, with one flush.
Status Replica::log_epochs(Lock& lock) {
  const uint64_t end = taken_;
  uint64_t at = logged_;
  bool appended = false;
  for (; at < end; ++at) {
    const Item& next = item(at);
    if (next.bodies.empty()) continue;
    if (!journal_.has_room(epoch_bytes(next.bodies))) {
      if (appended) break;
      if (draining_) {
        log_full_ = true;
        return {};
      }
      REMUSD_TRY(make_room(lock));
      if (quit_ || !failure_.ok() || draining_) return {};
    }
    lock.unlock();
    const Status status = journal_.append(next.epoch, next.generation, next.bodies);
    lock.lock();
    REMUSD_TRY(status);
    appended = true;
    log_epoch_ = next.epoch;
    log_generation_ = next.generation;
  }
  if (appended) {
    lock.unlock();
    fail_point("disk.appended");
    const Status status = journal_.flush();
    fail_point("disk.logged");
    lock.lock();
    REMUSD_TRY(status);
    ++stats_.journal_flushes;
  }
  durable_epoch_ = item(at - 1).epoch;
  logged_ = at;
  wake_both();
  if (journal_.live_bytes() < std::min(kMostLiveBytes, log_bytes_ / 2) || draining_) return {};
  return make_room(lock);
}

/// Brings all that is in the log to the disks, for good, and begins it anew. REQUIRES: it is flushed.
Status Replica::make_room(Lock& lock) {
  wake_.wait(lock, [this] { return quit_ || !failure_.ok() || draining_ || applied_ >= logged_; });
  if (quit_ || !failure_.ok() || draining_) return {};
  REMUSD_TRY(flush_disks(lock));
  lock.unlock();
  fail_point("disk.flushed");
  Status status = journal_.advance(log_epoch_, log_generation_, journal_.position());
  lock.lock();
  return status;
}

Status Replica::let_go(Lock& lock) {
  REMUSD_TRY(flush_disks(lock));
  lock.unlock();
  const Status status = journal_.release(applied_epoch_, options_.generation);
  lock.lock();
  REMUSD_TRY(status);
  logged_ = taken_;
  durable_epoch_ = applied_epoch_.load();
  released_ = true;
  tell(lock);
  return {};
}

}  // namespace remusd::disk
