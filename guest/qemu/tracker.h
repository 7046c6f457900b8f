// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Which pages of a QEMU process's RAM were written, found out from outside and without its help.
//
// Planting makes the process create a userfaultfd (inject.h), brings the descriptor here with pidfd_getfd and
// closes the process's own copy: this process then holds the only one, and its death removes the tracking and
// releases every thread that waits in a fault. A guest never hangs because its protector died.
//
// Two trackers behind one interface (DESIGN.md section 2):
//   async  Linux >= 6.7: the kernel itself resolves write-protect faults; PAGEMAP_SCAN reads and re-arms.
//   sync   Linux >= 5.19: a thread named "fault" of ours resolves them and keeps a bitmap.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "ckpt/pages.h"
#include "ckpt/status.h"

namespace remusd::guest::qemu {

/// The RAM mapping in the QEMU process (a shared memfd); page 0 of the image is at `address`. Both are
/// multiples of kPageSize. The range must be mapped whole, shared and from pages of 4 KiB (not hugetlbfs).
struct TrackedRange {
  uint64_t address = 0;
  uint64_t bytes = 0;
};

/// Tracking that is planted in a process. Destroying it removes the tracking and leaves the process running;
/// it is safe when the process is gone already.
///
/// Thread: collect() belongs to one thread at a time; the tracker may be destroyed from any when none is in
/// it.
class Tracker {
 public:
  virtual ~Tracker() = default;

  /// Replaces *dirty by the pages written since planting or since the last collect(), and arms them again. A
  /// store that happens before collect() is called is in this result; one that races with it is in this or
  /// the next: none is lost, however the guest runs meanwhile. Writes that the kernel does for the process
  /// (read(), vhost in its address space) count as its stores; writes through another mapping of the memory,
  /// ours for instance, do not. Pages that were never populated and not written are not reported; one that
  /// is populated otherwise, by reading it or through another mapping, may be, once.
  ///
  /// Allocates only while *dirty has too little capacity. Fails with `unavailable` when the process has
  /// ended, `io` otherwise; after a failure *dirty is empty, the pages that were to be in it may be lost to
  /// later calls, and the caller must treat every page as dirty or give up.
  virtual Status collect(PageSet* dirty) = 0;

  /// Takes `pages` as written, from now on: every collect() has them in its result without looking, and does
  /// not arm them, so that writing them costs the process nothing. Replaces what was assumed before; what is
  /// assumed no more is in the next result if it was written since it was last armed. For few ranges: each
  /// cuts the next collect() in two. REQUIRES: collect() has reported them before.
  virtual void assume_written(const PageSet& pages) = 0;

  /// "async (userfaultfd WP_ASYNC + PAGEMAP_SCAN)" or "sync (userfaultfd write-protect faults)".
  virtual std::string name() const = 0;
};

enum class TrackerKind { automatic, async, sync };

/// Plants tracking of `ram` in process `pid`, which is stopped for well under a millisecond. `automatic`
/// takes async where the kernel has it, else sync.
///
/// `memory` is a descriptor of the memory file whose offset 0 is page 0: what it has no data of costs nothing
/// to track. It must outlive the tracker; -1: not known.
///
/// `give_fd` may be null: it passes a descriptor into the process (QMP add-fd) and returns its number there;
/// it is called with /dev/userfaultfd when the process may not call userfaultfd itself, while the process
/// runs. The number stays the giver's to remove. Fails with `invalid` (range), `not_found` (no such process),
/// `denied` (which right is missing), `unsupported` (which kernel is needed), `exists` (tracked already, by
/// another remusd or by QEMU's own background snapshot).
Result<std::unique_ptr<Tracker>> plant_tracker(int pid, TrackedRange ram, int memory, TrackerKind kind,
                                               const std::function<Result<int>(int fd)>& give_fd);

}  // namespace remusd::guest::qemu
