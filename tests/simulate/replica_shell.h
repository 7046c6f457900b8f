// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The replica of a guest's disk in virtual time: what disk/replica.cc does, in its order of actions, around
// the real journal. Its two threads are two chains of events here, which get slow when the host's disk does;
// between any two writes or flushes the host may die.
//
//   journal:  mark inconsistent; after epoch 1 flush the disk, start; append*, flush; flush the disk, advance
//   replica:  writes to the disk what the journal has, run by run
//
// It lives as long as the run, since events name it; end() is what its destructor does there.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "backup/store.h"
#include "disk/journal.h"
#include "tests/simulate/node.h"

namespace remusd::simulate {

class ReplicaShell final : public backup::DiskSink {
 public:
  /// `session`: the checkers' number. `changed`: it failed, or has room again.
  ReplicaShell(Node& node, uint64_t session, uint64_t generation, std::function<void()> changed);
  void sync(ckpt::Bytes body) override;
  void commit(uint64_t epoch, std::vector<ckpt::Bytes> bodies) override;

  /// Over its bound: nothing is acknowledged.
  bool behind() const { return taken_ - first_ > kBound; }
  const Status& failure() const { return failure_; }
  /// All that was committed is on the disk when it returns ok. Nothing is committed after.
  Status drain();
  /// The guest runs on it.
  void release();
  /// Ends after what is under way.
  void end() { ended_ = true; }

 private:
  static constexpr uint64_t kBound = 6;  // items
  enum class Kind : uint8_t { sync, first, epoch };
  struct Item {
    Kind kind = Kind::sync;
    uint64_t epoch = 0;
    std::vector<ckpt::Bytes> bodies;
  };

  void take(Item item);
  Item& item(uint64_t number) { return items_[number - first_]; }
  void forget_done();
  bool stopped() const { return ended_ || !failure_.ok() || died(); }
  bool died() const { return world_.incarnation(host_) != incarnation_; }
  /// What became of an operation; false when this host died of it, or the replica failed.
  bool went_well(const Status& status, bool of_disk);
  void in_a_while(std::function<void()> then);
  template <typename File>
  Status flush(File& file);

  void run_journal();
  void log_sync();
  void log_first();
  void log_epochs();
  void make_room();
  void let_go();

  void run_replica();
  bool may_apply();
  bool apply_body(const ckpt::Bytes& body);

  Node& node_;
  Site& site_;
  World& world_;
  const HostId host_;
  const uint32_t incarnation_;
  const uint64_t session_, generation_;
  const std::function<void()> changed_;
  LocalDisk& local_;
  std::optional<disk::Journal> journal_;

  std::deque<Item> items_;  // the first that are not: forgotten, logged, applied, taken
  uint64_t first_ = 0, logged_ = 0, applied_ = 0, taken_ = 0;
  size_t bodies_applied_ = 0;  // of item applied_
  uint64_t log_epoch_ = 0;
  bool marked_ = false, draining_ = false, release_asked_ = false, released_ = false, ended_ = false;
  bool disk_failed_ = false, logs_ = false, applies_ = false;
  bool room_wanted_ = false;  // the log waits for the disk
  Status failure_;
};

}  // namespace remusd::simulate
