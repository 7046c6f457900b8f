// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/replica_shell.h"

#include <algorithm>
#include <utility>

#include "ckpt/disk_codec.h"

namespace remusd::simulate {

using ckpt::Bytes;

ReplicaShell::ReplicaShell(Node& node, uint64_t session, uint64_t generation, std::function<void()> changed)
    : node_(node),
      site_(node.site()),
      world_(site_.world),
      host_(node.id()),
      incarnation_(world_.incarnation(host_)),
      session_(session),
      generation_(generation),
      changed_(std::move(changed)),
      local_(node.disk()) {
  auto opened = disk::Journal::open(local_.journal(), kDiskSizes);
  REMUSD_ASSERT(opened.ok(), "there is a journal's file");
  journal_.emplace(std::move(*opened));
}

void ReplicaShell::sync(Bytes body) {
  Item item;
  item.bodies.push_back(std::move(body));
  take(std::move(item));
}

void ReplicaShell::commit(uint64_t epoch, std::vector<Bytes> bodies) {
  take({epoch == 1 ? Kind::first : Kind::epoch, epoch, std::move(bodies)});
}

void ReplicaShell::take(Item item) {
  REMUSD_ASSERT(!draining_, "nothing is committed after drain()");
  if (stopped()) return;
  items_.push_back(std::move(item));
  ++taken_;
  run_journal();
  run_replica();
}

void ReplicaShell::forget_done() {
  const bool was_behind = behind();
  while (first_ < std::min(logged_, applied_)) {
    items_.pop_front();
    ++first_;
  }
  if (was_behind && !behind()) changed_();
}

/// Between any two operations the host may die; in the middle of one its power goes.
bool ReplicaShell::went_well(const Status& status, bool of_disk) {
  if (!node_.step() || died()) return false;
  if (status.ok()) return true;
  disk_failed_ = disk_failed_ || of_disk;
  if (!failure_.ok()) return false;
  failure_ = status;
  ++world_.stats().disk_failures;
  world_.note(host_, of_disk ? "has its replica's disk fail" : "has its replica's journal fail");
  // Together with the loss of the primary, that is two faults at a time.
  if (of_disk) site_.checkers.excuse_loss();
  changed_();
  return false;
}

void ReplicaShell::in_a_while(std::function<void()> then) {
  world_.at_host(host_, world_.random().between(microseconds(20), node_.disk_delay()), std::move(then));
}

template <typename File>
Status ReplicaShell::flush(File& file) {
  Status status = file.flush();
  if (!status.ok() && world_.plant(Plant::retry_flush)) status = file.flush();
  return status;
}

// ---- The journal's thread.

void ReplicaShell::run_journal() {
  if (logs_ || stopped()) return;
  if (release_asked_) {
    if (released_) return;
    logs_ = true;
    return in_a_while([this] { let_go(); });
  }
  if (logged_ == taken_) return;
  const Kind kind = item(logged_).kind;
  if (draining_ && kind != Kind::sync) return;
  if (kind == Kind::first && applied_ < logged_) return;  // run_replica() comes back
  logs_ = true;
  in_a_while([this, kind] {
    logs_ = false;
    if (stopped() || release_asked_) return run_journal();
    if (kind == Kind::sync) return log_sync();
    if (kind == Kind::first) return log_first();
    log_epochs();
  });
}

void ReplicaShell::log_sync() {
  if (!marked_) {
    site_.checkers.disk_is_begun(host_);
    if (!world_.plant(Plant::forget_mark)) {
      const Status status = journal_->mark_inconsistent({}, generation_);
      if (!went_well(status, false)) return;
    }
    marked_ = true;
    site_.checkers.disk_is_nobodys(host_, session_);
  }
  while (logged_ < taken_ && item(logged_).kind == Kind::sync) ++logged_;
  run_replica();
  run_journal();
}

void ReplicaShell::log_first() {
  if (draining_) return;
  if (!went_well(flush(*local_.media()[0]), true)) return;
  const Status status = journal_->start({}, 1, generation_);
  if (!went_well(status, false)) return;
  log_epoch_ = 1;
  site_.checkers.disk_is_durable(host_, 1);
  ++logged_;
  run_replica();
  run_journal();
}

/// All that wait and have room, with one flush, which takes its time.
void ReplicaShell::log_epochs() {
  if (draining_) return;
  uint64_t at = logged_;
  bool appended = false;
  for (; at < taken_; ++at) {
    const Item& next = item(at);
    if (next.bodies.empty()) continue;
    if (!journal_->has_room(disk::epoch_bytes(next.bodies))) {
      if (!appended) return make_room();
      break;
    }
    if (!went_well(journal_->append(next.epoch, generation_, next.bodies), false)) return;
    appended = true;
    log_epoch_ = next.epoch;
  }
  const auto durable = [this, at, epoch = item(at - 1).epoch] {
    site_.checkers.disk_is_durable(host_, epoch);
    logged_ = at;
    run_replica();
    if (journal_->live_bytes() >= journal_->log_bytes() / 2) return make_room();
    forget_done();
    run_journal();
  };
  if (!appended) return durable();
  if (world_.plant(Plant::apply_before_log)) {
    logged_ = at;
    run_replica();
  }
  logs_ = true;
  in_a_while([this, durable] {
    logs_ = false;
    if (stopped()) return;
    if (!went_well(flush(*journal_), false)) return;
    if (draining_) return run_journal();
    durable();
  });
}

/// REQUIRES: what is in the log is flushed.
void ReplicaShell::make_room() {
  room_wanted_ = applied_ < logged_;
  logs_ = true;
  if (room_wanted_) return;  // run_replica() comes back
  in_a_while([this] {
    logs_ = false;
    if (stopped() || draining_) return run_journal();
    if (!world_.plant(Plant::lose_disk_barrier) && !went_well(flush(*local_.media()[0]), true)) return;
    if (!went_well(journal_->advance(log_epoch_, generation_, journal_->position()), false)) return;
    forget_done();
    run_journal();
  });
}

void ReplicaShell::let_go() {
  logs_ = false;
  if (ended_ || died()) return;
  const bool well = went_well(flush(*local_.media()[0]), true) &&
                    went_well(journal_->release(log_epoch_, generation_), false);
  if (died()) return;
  // Replayed later, it would go over what the guest was told to be durable.
  if (!well) local_.drop_journal();
  released_ = true;
}

// ---- The replica's thread.

bool ReplicaShell::may_apply() {
  if (disk_failed_ || applied_ == taken_) return false;
  if (draining_ && item(applied_).kind != Kind::sync) return true;
  return failure_.ok() && applied_ < logged_;
}

void ReplicaShell::run_replica() {
  if (applies_ || stopped() || draining_ || !may_apply()) return;
  applies_ = true;
  in_a_while([this] {
    applies_ = false;
    if (stopped() || draining_ || !may_apply()) return;
    Item& next = item(applied_);
    if (bodies_applied_ < next.bodies.size()) {
      if (!apply_body(next.bodies[bodies_applied_])) return;
      ++bodies_applied_;
      return run_replica();
    }
    bodies_applied_ = 0;
    if (next.kind != Kind::sync) site_.checkers.disk_is_applied(host_, session_, next.epoch, local_.blocks());
    ++applied_;
    forget_done();
    if (room_wanted_ && applied_ >= logged_) make_room();
    run_journal();
    run_replica();
  });
}

bool ReplicaShell::apply_body(const Bytes& body) {
  bool well = true;
  const Status status = ckpt::apply_disk(body, [&](const ckpt::DiskRun& run) {
    Status written = disk::write_run(*local_.media()[run.disk], run);
    if (world_.plant(Plant::ignore_disk_error) && !local_.off()) written = {};
    well = went_well(written, true);
    return well ? Status() : Status(Code::io, "it ends here");
  });
  return well && status.ok();
}

// ---- What the receive thread waits for.

Status ReplicaShell::drain() {
  if (ended_) return {Code::unavailable, "there is no replica"};
  site_.checkers.disk_is_drained(host_);
  draining_ = true;
  if (world_.plant(Plant::promote_undrained)) return {};
  while (!disk_failed_ && applied_ < taken_) {
    Item& next = item(applied_);
    if (next.kind == Kind::sync && applied_ >= logged_) {
      if (!failure_.ok()) return failure_;
      log_sync();
      if (died()) return {Code::unavailable, "this host died"};
      continue;
    }
    for (; bodies_applied_ < next.bodies.size(); ++bodies_applied_) {
      if (apply_body(next.bodies[bodies_applied_])) continue;
      return died() ? Status(Code::unavailable, "this host died") : failure_;
    }
    bodies_applied_ = 0;
    ++applied_;
  }
  return disk_failed_ ? failure_ : Status();
}

void ReplicaShell::release() {
  release_asked_ = true;
  if (!failure_.ok()) return local_.drop_journal();
  logs_ = logs_ && !room_wanted_;
  run_journal();
}

}  // namespace remusd::simulate
