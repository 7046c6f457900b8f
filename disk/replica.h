// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The backup's copy of a guest's disks, for one session: what epochs change goes into the journal, then to
// the local disks, in order, without the receive thread ever waiting for a disk.
//
//   sync()* --commit(1)--> commit(k)* --drain()--> all is in the files --release()--> the guest's
//
//   sync:    written straight to the disks. The journal says `inconsistent` before the first byte is.
//   commit 1: once the disks are flushed the journal says `consistent`.
//   commit k: into the journal, which is flushed (for all that wait at once), then to the disks. An epoch
//            that changes nothing passes in its turn and costs no I/O.
//   drain:   what was committed goes to the disks without waiting for the journal.
//   release: the disks are flushed and the journal says `released`, behind the guest's back.
//
// A guest that was promoted may run, read and write when drain() returned ok, but a flush of its must not be
// answered before released(): until then a loss of power brings the journal back over what it wrote, which it
// may only see as writes that were lost, as with any disk.
//
// docs/architecture.md tells what drain() gives up when this host loses power before released().
//
// The bound: nothing is refused while queued_bytes() <= limit_bytes(). Above it whoever commits withholds its
// acknowledgement, and in a first sync, which has none, reads no more from its peer: await_room(), or
// `changed`, tells when to go on. Whoever does neither is stopped at kHardLimit times the limit: that is a
// failure. What is kept is at most that and the bodies of one call, with 5 MiB for encoding and decoding.
//
// A failure of a disk or of the journal is final, what came after it is neither applied nor counted, and no
// flush is tried again. But when the journal alone has failed, drain() still brings what was taken to the
// disks; release() then fails, and whoever lets the guest run must remove the journal's file first.
//
// Threads: "replica" writes to the disks, "journal" appends and does all flushing, so that no flush that
// hangs holds up drain(). sync, commit, drain and release belong to one thread, the rest to any.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/clock.h"
#include "disk/answers.h"
#include "disk/journal.h"
#include "disk/replica_stats.h"

namespace remusd::disk {

struct ReplicaOptions {
  size_t limit_bytes = 64u << 20;
  size_t beyond_bytes = 0;  // that a primary may send beyond its own bound
  ckpt::SessionId session{};
  uint64_t generation = 0;
};

class Replica {
 public:
  static constexpr size_t kHardLimit = 4;

  /// `changed` is called, without a lock, when it failed, when there is room again, when there is an answer,
  /// when epoch 1 is durable and when it is released:
  /// on a thread of the replica's, or inside of commit(). It may ask for failure() and the numbers only.
  static Result<std::unique_ptr<Replica>> open(Media disks, std::shared_ptr<Medium> journal,
                                               const ReplicaOptions& options,
                                               std::function<void()> changed = {});
  /// Ends after what is under way. What is in the journal stays there for recover().
  ~Replica();
  Replica(const Replica&) = delete;
  Replica& operator=(const Replica&) = delete;

  // Bodies have passed check_disk() and verify_disk(). These never wait; a failure is failure().
  /// A body of epoch 1. REQUIRES: before commit(1).
  Status sync(ckpt::Bytes&& body);
  /// The bodies of a whole epoch, one more than the last. Epoch 1: what is not synced yet.
  Status commit(uint64_t epoch, std::vector<ckpt::Bytes>&& bodies, uint64_t generation);

  /// What the disks hold, after all that was taken before: a `blocks` ask; told() has the answer's body, once
  /// `changed` is called. `corrupt` outside the disks, `exhausted` when too much is asked at once.
  Status ask(const ckpt::DiskAsk& ask);
  bool told(ckpt::Bytes* body) { return answers_.take(body); }

  /// Returns when all that was committed is in the local files, or `timed_out`. Nothing is committed after.
  /// May be called again. REQUIRES: epoch 1 is committed.
  Status drain(Time deadline);
  /// Begins it and returns at once. REQUIRES: drain() returned ok.
  void release();
  bool released() const { return released_.load(); }
  Status await_release(Time deadline);

  size_t queued_bytes() const { return queued_bytes_.load(); }
  size_t limit_bytes() const { return options_.limit_bytes; }
  bool over_limit() const { return queued_bytes() > limit_bytes(); }
  /// Waits until it is not over its limit any more. False at the deadline, and when it has failed.
  bool await_room(Time deadline);
  uint64_t applied_epoch() const { return applied_epoch_.load(); }
  uint64_t durable_epoch() const { return durable_epoch_.load(); }
  Status failure() const;  // the first one; ok as long as there is none
  ReplicaStats stats() const;

 private:
  enum class Kind : uint8_t { sync, first, epoch, ask };
  struct Item {
    Kind kind = Kind::sync;
    uint64_t epoch = 0, generation = 0;
    std::vector<ckpt::Bytes> bodies;
    size_t kept_bytes = 0;  // of memory
    size_t body_bytes = 0;
    std::unique_ptr<ckpt::DiskAsk> ask{};
  };
  using Lock = std::unique_lock<std::mutex>;

  Replica(Media disks, std::shared_ptr<Medium> file, Journal journal, const ReplicaOptions& options,
          std::function<void()> changed);
  Status take(Kind kind, uint64_t epoch, uint64_t generation, std::vector<ckpt::Bytes>&& bodies);
  Status give_up(Code code, const std::string& why);
  Item& item(uint64_t number) { return items_[number - first_]; }
  void forget_done(Lock& lock);
  void fail(Lock& lock, const Status& status, bool of_disk);
  void tell(Lock& lock);
  void wake_both();

  void run_replica();
  bool may_apply();
  Status apply(const Item& item);
  void run_journal();
  bool may_log();
  bool may_release() const { return release_asked_ && !released_ && failure_.ok(); }
  Status log_next(Lock& lock);
  Status log_syncs(Lock& lock);
  Status log_first(Lock& lock);
  Status log_epochs(Lock& lock);
  Status make_room(Lock& lock);
  Status let_go(Lock& lock);
  Status flush_disks(Lock& lock);

  const ReplicaOptions options_;
  const Media disks_;
  const std::shared_ptr<Medium> file_;
  const std::function<void()> changed_;
  Journal journal_;  // the journal's thread's
  const uint64_t log_bytes_;

  mutable std::mutex mutex_;
  std::condition_variable wake_, to_apply_;  // all others, and the replica's thread
  std::deque<Item> items_;                   // of which the threads hold references without the lock
  // Numbers of items, from 0: the first that are not forgotten, logged, applied, taken.
  uint64_t first_ = 0, logged_ = 0, applied_ = 0, taken_ = 0;
  uint64_t committed_epoch_ = 0, log_epoch_ = 0, log_generation_ = 0, unflushed_bytes_ = 0;
  bool marked_ = false, draining_ = false, release_asked_ = false, quit_ = false;
  bool tell_room_ = false, disk_failed_ = false, disk_flush_failed_ = false, log_full_ = false;
  Answers answers_;
  Status failure_;
  ReplicaStats stats_;

  std::atomic<size_t> queued_bytes_ = 0;
  std::atomic<uint64_t> applied_epoch_ = 0, durable_epoch_ = 0;
  std::atomic<uint64_t> applied_bytes_ = 0, applied_runs_ = 0;
  std::atomic<bool> released_ = false;
  std::thread replica_, journaler_;  // last: they use the rest
};

}  // namespace remusd::disk
