// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The first sync of a guest's disks, while the guest runs: one thread ("disksync") that reads the local disks
// and makes DISK bodies of epoch 1, which the ship thread takes as the link has room.
//
//   copying: passes over what was written meanwhile --settle()--> little is left --finish()--> all is copied
//
// Where the backup tells what its disks hold, only what differs is sent; and where both hosts have a sync
// point in common (sync_point.h), only what was written since is looked at. Else everything is sent: holes
// cost a table entry for each MiB and zeros too, so that a replica that held something else ends up equal.
//
// What changes while it is read is marked by the tap, when it begins and when it is done, and read
// again. finish() lets the tap log, and copies what is marked until nothing is, and nothing that began before
// is under way: what was copied is then no newer than epoch 1, and the log of epoch 1 goes over it.
//
// Of held disks (tap.h) there is nothing to copy: the backup sees them. What was written to them before the
// tap keeps it is flushed by finish().
//
// Bounds: kMaxReady bodies wait for the ship thread; the marks take 1 MiB a disk at most, a mark standing for
// 4 KiB, or more where a disk has more than 32 GiB.
//
// Threads: settle and finish from the epoch thread, next from the ship thread, the rest from any.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/disk_codec.h"
#include "disk/block_marks.h"
#include "disk/dirty_map.h"
#include "disk/inquiry.h"
#include "disk/local_file.h"
#include "disk/tap.h"

namespace remusd::disk {

struct CopyProgress {
  uint64_t total_bytes = 0;    // of the first pass: all disks, or what may differ of them
  uint64_t copied_bytes = 0;   // of it, looked at
  uint64_t again_bytes = 0;    // copied by later passes
  uint64_t changed_bytes = 0;  // of runs in bodies: what the backup is made to change
  uint64_t sent_bytes = 0;     // of bodies taken
  bool by_map = false;         // a sync point in common told where to look
};

/// How to find out what the backup has. Both outlive the Copier.
struct Counterpart {
  Inquiry* inquiry = nullptr;     // null: it does not tell
  const DirtyMap* map = nullptr;  // null: nothing is known here
};

class Copier {
 public:
  static constexpr size_t kMaxReady = 4;
  /// What it holds at most: the bodies that wait, the one that is made and what it is made of, and marks.
  static uint64_t limit_bytes(size_t disks) {
    return (kMaxReady + 2) * ckpt::kMaxBodyBytes + disks * BlockMarks::kMostBytes;
  }

  /// Begins at once; the tap marks from here on. The files, the tap and what `wake` touches outlive it.
  /// `wake` is called, on the copier's thread, when there is a body to take. `bytes_per_second` 0: no limit.
  Copier(std::span<const LocalFile> files, Tap& tap, uint64_t bytes_per_second, std::function<void()> wake,
         const Counterpart& counterpart = {});
  /// Stops. The tap goes on as it is: it is for the caller to end its session.
  ~Copier();
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  /// Waits until little is left to copy. A failure of a disk ends it; `unavailable` when stop() was called.
  Status settle();
  /// Copies the rest, and waits until the ship thread has taken all of it.
  Status finish();
  /// A body of epoch 1 at the end of *out; false when none is ready.
  bool next(ckpt::Bytes* out, uint64_t* raw_bytes);
  void stop();
  CopyProgress progress() const;

 private:
  struct Body {
    ckpt::Bytes bytes;
    uint64_t raw_bytes = 0;
  };
  struct Span {
    size_t disk = 0;
    uint64_t offset = 0, bytes = 0;
  };
  enum class Stage { copying, settled, finishing, finished };

  void run();
  Status copy();
  Status first_pass();
  Status find_spans(std::vector<Span>* spans);
  Status ask_map(ckpt::SessionId* point, ckpt::Bytes* bits);
  Status compare(const Span& span);
  void ask(const Span& span, uint64_t offset);
  Status copy_marked();
  Status begin_log();
  Status flush_held();
  Status copy_region(size_t disk, uint64_t offset, uint64_t bytes);
  void looked_at(size_t disk, uint64_t offset, uint64_t bytes);
  Status add(const ckpt::DiskRun& run);
  Status hand_over();
  uint64_t marked_bytes() const;
  Status await(Stage stage);

  const std::span<const LocalFile> files_;
  Tap& tap_;
  const uint64_t bytes_per_second_;
  const std::function<void()> wake_;
  const Counterpart counterpart_;
  const ckpt::DigestKey key_;
  std::vector<BlockMarks> marks_;  // by disk; set on the server's thread, cleared on ours

  // Its own thread's.
  ckpt::DiskBody body_;
  ckpt::Bytes buffer_, answer_;
  Time paced_until_{};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Body> ready_;
  Stage stage_ = Stage::copying;
  bool finish_asked_ = false, stop_ = false;
  Status failure_;
  CopyProgress progress_;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace remusd::disk
