// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/nbd_dispatcher.h"

#include <cerrno>
#include <memory>
#include <span>
#include <utility>

#include "disk/nbd_connection.h"

namespace remusd::disk {
namespace {

void count_more(std::atomic<uint64_t>* counter, uint64_t more = 1) {
  counter->fetch_add(more, std::memory_order_relaxed);
}

}  // namespace

void Dispatcher::carry_out(Job* job) {
  using nbd::Command;
  DiskTally& tally = job->connection->tally();
  Drive& drive = *job->drive;
  const uint64_t bytes = job->request.bytes;
  switch (job->request.command) {
    case Command::read:
      count_more(&tally.reads);
      count_more(&tally.read_bytes, bytes);
      if (look_at_kept(job)) return done(job, 0);
      job->in_pipe = job->kept == nullptr && drive.pass(job->request, &job->connection->pages());
      return job->in_pipe ? done(job, 0) : drive.read(job);
    case Command::write:
      count_more(&tally.writes);
      count_more(&tally.written_bytes, bytes);
      return change(job);
    case Command::trim:
    case Command::write_zeroes:
      count_more(&tally.zeroes);
      count_more(&tally.zeroed_bytes, bytes);
      return change(job);
    case Command::flush:
      count_more(&tally.flushes);
      return flush(job);
    case Command::cache:
      return drive.cache(job);
    case Command::block_status:
      (void)look_at_kept(job);
      return drive.extents(job);
    case Command::disconnect:
      break;
  }
  REMUSD_ASSERT(false, "only requests that were checked are carried out");
}

void Dispatcher::refuse(Job* job, nbd::Error error) {
  count_more(&job->connection->tally().errors);
  job->connection->answer(job, error);
}

void Dispatcher::done(Job* job, int error) {
  if (error != 0) return refuse(job, nbd::error_of(error));
  if (job->kept != nullptr) Drive::lay_over(*job->kept, job);
  job->connection->answer(job, nbd::Error::none);
}

size_t Dispatcher::disk_of(const Job& job) const {
  size_t disk = 0;
  while (drives_[disk] != job.drive) ++disk;
  return disk;
}

Change Dispatcher::change_of(const Job& job) const {
  Change change{disk_of(job), ChangeKind::punch, job.request.offset, job.request.bytes, job.sequence};
  if (job.request.command == nbd::Command::write) {
    change.kind = ChangeKind::write;
  } else if (Drive::keeps_room(job.request)) {
    change.kind = ChangeKind::zero;
  }
  return change;
}

/// Before the file is. True: it need not be.
bool Dispatcher::look_at_kept(Job* job) {
  if (observer_ == nullptr) return false;
  const bool read = job->request.command == nbd::Command::read;
  job->kept = observer_->kept(disk_of(*job), job->request.offset, job->request.bytes, read);
  return read && job->kept != nullptr && job->kept->whole();
}

// ---- Changes

void Dispatcher::change(Job* job) {
  // It could not be made good: then it is not begun either.
  if (job->request.has(nbd::kFua) && job->drive->broken()) return done(job, EIO);
  if (held_.empty() && tell(job)) return make(job);
  count_more(&job->connection->tally().held);
  held_.push_back(job);
}

bool Dispatcher::tell(Job* job) {
  if (observer_ == nullptr) return true;
  if (job->request.has(nbd::kFua) && observer_->flush_held()) return false;
  job->sequence = next_sequence_;
  const Change change = change_of(*job);
  std::span<const std::byte> data;
  if (change.kind == ChangeKind::write) data = {job->content.data(), job->request.bytes};
  if (!observer_->changing(change, data)) return false;
  ++next_sequence_;
  return true;
}

/// A change that was told of.
void Dispatcher::make(Job* job) {
  changing_.fetch_add(1);
  const Fate fate = observer_ != nullptr ? observer_->fate(change_of(*job)) : Fate::make;
  if (fate == Fate::make) return job->drive->change(job);
  changed(job, fate == Fate::refuse ? EIO : 0);
  if (fate == Fate::refuse) return done(job, EIO);
  return job->request.has(nbd::kFua) ? flush(job) : done(job, 0);
}

void Dispatcher::changed(Job* job, int error) {
  if (observer_ != nullptr) observer_->changed(change_of(*job), error);
  if (changing_.fetch_sub(1) > 1 || draining_.load() == 0) return;
  const std::lock_guard lock(drained_lock_);
  drained_.notify_all();
}

// ---- Flushes

void Dispatcher::flush(Job* job) {
  if (observer_ != nullptr && observer_->flush_held()) return held_flushes_.push_back(job);
  if (doubt_.exchange(false))
    for (Drive* drive : drives_) drive->doubt();
  const FlushFate fate = observer_ != nullptr ? observer_->flush_fate(disk_of(*job)) : FlushFate::make;
  if (fate == FlushFate::wait) return held_flushes_.push_back(job);
  if (fate == FlushFate::refuse || (fate == FlushFate::answer && job->drive->broken())) return done(job, EIO);
  if (fate == FlushFate::answer) return done(job, 0);
  if (job->drive->broken() || observer_ == nullptr || !observer_->flush_may_wait())
    return job->drive->flush(job);
  Drive* drive = job->drive;  // of which an answered job knows nothing
  done(job, 0);
  drive->flush_later();
}

void Dispatcher::flushed_later(int error) {
  observer_->flushed_later(error);
}

// ---- What is held, and what is under way

void Dispatcher::retry() {
  for (Job* flush_job : std::exchange(held_flushes_, {})) flush(flush_job);
  while (!held_.empty() && tell(held_.front())) {
    Job* job = held_.front();
    held_.pop_front();
    job->connection->tally().held.fetch_sub(1, std::memory_order_relaxed);
    make(job);
  }
}

void Dispatcher::drop_held() {
  held_.insert(held_.end(), held_flushes_.begin(), held_flushes_.end());
  held_flushes_.clear();
  while (!held_.empty()) {
    Job* job = held_.front();
    held_.pop_front();
    job->connection->drop(job);
  }
}

bool Dispatcher::drain(Time deadline) {
  draining_.fetch_add(1);
  bool none = false;
  {
    std::unique_lock lock(drained_lock_);
    none = drained_.wait_until(lock, deadline, [this] { return idle(); });
  }
  draining_.fetch_sub(1);
  return none;
}

}  // namespace remusd::disk
