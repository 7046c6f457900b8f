// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Fail points: named places where a test may end, stop or fail the process at a chosen pass. They exist in
// builds with REMUSD_FAILPOINTS only; elsewhere a call is nothing.
//
// The environment says what happens:
//
//   REMUSD_FAIL_POINTS="primary.paused=kill@3;arbiter.installed=error@1-30;backup.won=stop"
//
// kill: SIGKILL to itself. stop: SIGSTOP to itself, all threads. error: fail_point_error() returns a failure;
// places that use fail_point() have nothing to return and go on. @N: at the N-th pass (the first without it),
// @N-M: at each of those. A wrong text ends the process: a test must not pass for a typing error.
//
//   REMUSD_FAIL_POINT_TABLE=FILE
//
// keeps the table in that file, shared with a test that arms points while the process runs and counts passes:
// one FailPointSlot for each name, in their order. The file is made when it is missing; what it holds stays.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "ckpt/status.h"

namespace remusd {

inline constexpr auto kFailPoints = std::to_array<std::string_view>({
    "primary.paused",          // the guest stands
    "primary.scanned",         // dirty pages are known
    "primary.copied",          // and copied
    "primary.resumed",         // the guest runs again
    "primary.saved",           // its device state is here, the epoch is not sealed yet
    "primary.before_pages",    // a frame of pages is queued next
    "primary.after_pages",     // and was
    "primary.before_base",     // the same for the base stream
    "primary.after_base",      //
    "primary.before_device",   // for the device state
    "primary.after_device",    //
    "primary.before_commit",   // and for the commit record
    "primary.after_commit",    //
    "primary.acknowledged",    // ACK came, nothing is released for it yet
    "primary.released",        //
    "primary.before_ask",      // the arbiter is asked next
    "primary.answered",        // its answer is here, and not followed yet
    "primary.before_fence",    //
    "primary.before_pass",     // output passes next
    "backup.hello",            //
    "backup.ready",            // the standby waits, READY is not queued yet
    "backup.pages",            // a frame of pages came
    "backup.commit",           // COMMIT came, the epoch is not staged yet
    "backup.staged",           // not acknowledged yet
    "backup.acked",            // ACK is queued, the epoch is not applied yet
    "backup.half_applied",     //
    "backup.applied",          //
    "backup.load",             // a guest that stands on the primary is to be loaded; error: it cannot be
    "backup.before_ask",       //
    "backup.won",              // not promoted yet
    "backup.promoted",         //
    "disk.marked",             // backup: before a first sync's first byte the journal says so
    "disk.begun",              // epoch 1 is on the disks, the journal says so
    "disk.received",           // an epoch's changes are taken, the journal has nothing of them
    "disk.appended",           // the journal has them, and is not flushed
    "disk.logged",             // it is, and nothing is on the disks
    "disk.half_applied",       // a run is
    "disk.applied",            // all are
    "disk.flushed",            // the disks are flushed, the journal has not let go of it
    "arbiter.before_install",  // a request is to be granted; error: it is not, and the answer is lost
    "arbiter.installed",       // granted and durable; error: the answer is lost
});

/// A name from the table; another one does not compile.
class FailPoint {
 public:
  template <size_t size>
  consteval FailPoint(const char (&name)[size]) : index_(find(std::string_view(name, size - 1))) {}
  size_t index() const { return index_; }

 private:
  static consteval size_t find(std::string_view name) {
    size_t index = 0;
    while (kFailPoints.at(index) != name) ++index;
    return index;
  }
  size_t index_;
};

#if defined(REMUSD_FAILPOINTS)

/// Little-endian words, as the test that shares them sees them. The action is written last.
struct FailPointSlot {
  std::atomic<uint64_t> passes;  // so far
  std::atomic<uint64_t> first;   // the pass at which the action begins, from 1 on
  std::atomic<uint32_t> count;   // of passes for which it holds
  std::atomic<uint32_t> action;  // 0 none, 1 kill, 2 stop, 3 error
};
static_assert(sizeof(FailPointSlot) == 24);

Status fail_point_error(FailPoint point);
inline void fail_point(FailPoint point) {
  (void)fail_point_error(point);
}

#else

inline void fail_point(FailPoint) {}
inline Status fail_point_error(FailPoint) {
  return {};
}

#endif

}  // namespace remusd
