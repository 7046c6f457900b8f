// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest's disks on this host, as long as it is here: running, or waiting as a replica. Holds the local
// files (locked), the NBD server that its hypervisor is connected to, the tap between the two and, on a
// backup, what brings epochs to the files.
//
//   open() --the guest runs--> tap()
//   open_replica() --> replica() --promote()--> the guest runs --> tap()
//
// Threads: promote, ask and told belong to one thread; the rest may be called from any.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "ckpt/status.h"
#include "disk/local_file.h"
#include "disk/nbd_server.h"
#include "disk/replica.h"
#include "disk/settler.h"
#include "disk/sync_point.h"
#include "disk/tap.h"

namespace remusd::disk {

/// One disk. bytes 0: whatever the file has; otherwise so many, whatever it has (LocalFile::fit()), and a
/// file that is not there is made, empty.
struct DiskFile {
  std::string name;
  std::string path;
  std::string socket_path;  // the hypervisor connects here
  uint64_t bytes = 0;
  bool read_only = false;
  bool held = false;  // on storage that both hosts see (tap.h)
};

struct DisksOptions {
  uint64_t limit_bytes = 64u << 20;  // of the tap (tap.h), and of a replica (replica.h)
  std::string journal_path;          // of the replica; empty: there is none
  std::string map_path = {};         // of the sync point; empty: none is kept, a resync looks at everything
  std::string held_path = {};  // a file that is there while what a running guest wrote may be in memory alone
};

class Disks {
 public:
  /// For a guest that is to run: what an earlier replica has left in its journal is brought to the disks
  /// first. `unsafe`: they hold half a first sync.
  static Result<std::unique_ptr<Disks>> open(const std::vector<DiskFile>& disks, const DisksOptions& options);
  /// For a standby. `changed`: as Replica's, until promote() returns.
  static Result<std::unique_ptr<Disks>> open_replica(const std::vector<DiskFile>& disks,
                                                     const DisksOptions& options,
                                                     const ReplicaOptions& replica,
                                                     std::function<void()> changed);
  /// After a promotion waits until the journal has let go of the disks, 5 s at most.
  ~Disks();
  Disks(const Disks&) = delete;
  Disks& operator=(const Disks&) = delete;

  std::span<const LocalFile> files() const { return files_; }
  std::span<const std::string> names() const { return names_; }
  std::vector<uint64_t> sizes() const;
  Tap& tap() { return tap_; }
  const Tap& tap() const { return tap_; }
  DiskCounters counters(size_t disk) const { return server_->counters(disk); }
  /// The number of the thread that serves the hypervisor.
  int server_thread() const { return server_->thread(); }
  /// The hypervisor is connected to every disk. After a daemon's restart it comes back after some seconds,
  /// and cannot be stopped before that.
  bool connected() const;

  // Of the side on which the guest runs: what both sides have in common (sync_point.h).
  void begin_session(const ckpt::SessionId& session);
  void durable(uint64_t epoch);
  void end_session();
  /// The next resync looks at everything.
  void forget_sync_point();
  /// Null when none is kept.
  const DirtyMap* map() const { return point_ ? &point_->map() : nullptr; }
  /// Why the sync point was lost; ok when it was not.
  Status map_failure() const { return point_ ? point_->failure() : Status(); }

  // Of a replica: what it has. Answers come in order; `changed` is called when there is one.
  Status ask(const ckpt::DiskAsk& ask);
  bool told(ckpt::Bytes* body);

  /// What the tap and a first sync hold at most.
  uint64_t protection_bytes() const;

  /// By disk.
  const std::vector<bool>& held() const { return held_; }
  /// Before a standby's guest may run here: the held disks are ours alone. Tries until `deadline`.
  Status lock_held(Time deadline);
  bool promoted() const { return promoted_; }

  /// Null once a guest runs on them, and when all of them are held.
  Replica* replica() { return promoted_ ? nullptr : replica_.get(); }
  ReplicaStats replica_stats() const { return replica_ ? replica_->stats() : ReplicaStats(); }
  /// All that was committed is in the files (of held ones: the caller has seen to that), and the guest may
  /// run on them; its flushes wait until the journal has let go of them. Nothing is committed any more.
  Status promote(Time deadline);

 private:
  Disks(std::vector<LocalFile> files, const std::vector<DiskFile>& disks, const DisksOptions& options);
  static Result<std::unique_ptr<Disks>> open_files(const std::vector<DiskFile>& disks,
                                                   const DisksOptions& options, bool standby);
  Status serve(const std::vector<DiskFile>& disks);
  Status open_map();
  Status settle_journal();
  void replay_journal();
  Status reread_replica() const;
  Media media() const;
  Status note_held() const;
  void forget_held() const;
  void unlock_held() const;
  void on_replica();

  const std::vector<LocalFile> files_;
  const std::vector<bool> held_;
  std::vector<std::string> names_;
  const DisksOptions options_;
  Tap tap_;
  std::unique_ptr<SyncPoint> point_;
  Answers map_answers_;
  std::unique_ptr<LocalFile> journal_;
  std::atomic<Replica*> told_by_{nullptr};  // replica_, for its own callback
  std::mutex changed_mutex_;
  std::function<void()> changed_;  // until it is promoted: whoever asked for it may be gone then
  std::unique_ptr<Replica> replica_;
  std::atomic<bool> promoted_{false};
  std::unique_ptr<Server> server_;    // it uses the rest
  std::unique_ptr<Settler> settler_;  // when a disk is held
};

}  // namespace remusd::disk
