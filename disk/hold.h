// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Disks that are *held* lie on storage that the backup sees, too. From log() on a change of theirs is not
// made but kept: in the log of its epoch, as ever, and in an overlay that reads look at first.
//
//   passing --log()--> keeping --freeze()--> frozen --won()--> draining --all is written--> passing
//                                 keeping, frozen, draining --lost()--> lost
//
// keeping: what is acknowledged is written to the file in order of the epochs and flushed (settler.h), and
// then leaves the overlay and the bound; flushes are answered at once, for nothing that the guest says is
// heard before its epoch is acknowledged. frozen: the right to run is being decided: nothing more is written.
// draining: it was won: all that is kept is written in order, and what the guest changes or flushes meanwhile
// waits. lost: nothing is written ever again, and requests that would change something wait for ever. A disk
// that what was kept could not be written to is broken for good: its changes and flushes fail, and reads go
// on to see what was kept.
//
// Always holds: logs are settled in the order in which the guest made them. A run is in the overlay until it
// was written and flushed, or something newer covers it. Logs are settled in `keeping` and `draining` only,
// and not before every change that passed has been made on its file.
//
// Not thread-safe; tap.h guards it.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "ckpt/status.h"
#include "disk/epoch_log.h"
#include "disk/overlay.h"

namespace remusd::disk {

/// What an epoch changed, as long as somebody needs it.
struct KeptLog {
  uint64_t epoch = 0;   // 0: of none
  uint64_t number = 0;  // of logs, from 1, rising
  EpochLog log;
  uint64_t held_bytes = 0, raw_bytes = 0;
};

class Hold {
 public:
  enum class State : uint8_t { passing, keeping, frozen, draining, lost };
  /// wait: none. let_go: flush, give up the locks, tell let_go(). take_back: lock again, tell taken_back().
  /// done: nothing is kept any more, tell drained().
  enum class Chore : uint8_t { wait, write, let_go, take_back, done, end };

  explicit Hold(uint32_t disks) : disks_(disks) {}

  uint32_t disks() const { return disks_; }
  bool has(size_t disk) const { return (disks_ >> disk & 1U) != 0; }
  State state() const { return state_; }
  bool may_write() const { return state_ == State::keeping || state_ == State::draining; }
  /// Changes of its disks are kept.
  bool keeps() const { return state_ == State::keeping || state_ == State::frozen; }
  bool waits() const { return state_ == State::draining || state_ == State::lost; }
  bool broken(size_t disk) const { return (broken_ >> disk & 1U) != 0; }
  uint32_t sound() const { return disks_ & ~broken_; }
  const Status& failure() const { return failure_; }
  bool quiet() const { return gone_; }
  uint64_t memory_bytes() const { return overlay_.memory_bytes(); }
  const Overlay& overlay() const { return overlay_; }

  /// A change that is not kept begins and ends.
  void pass() { ++passing_; }
  void passed() { --passing_; }
  void keep(const Change& change, const std::byte* data, uint64_t log) { overlay_.add(change, data, log); }

  void begin();
  void freeze();
  void win();
  void lose() { state_ = State::lost; }
  /// The log may be written as soon as those before it are.
  void give(std::shared_ptr<KeptLog> log) { logs_.push_back(std::move(log)); }
  Chore chore() const;
  const std::deque<std::shared_ptr<KeptLog>>& logs() const { return logs_; }
  /// The oldest one is written. Returns it; it may still be needed by others.
  std::shared_ptr<KeptLog> settle();
  void break_disk(size_t disk, const Status& why);
  void let_go() { gone_ = true; }
  void take_back() { gone_ = false; }
  void drain() { state_ = State::passing; }
  void end() { ending_ = true; }

 private:
  const uint32_t disks_;
  uint32_t broken_ = 0;
  State state_ = State::passing;
  bool gone_ = false;  // the locks were given up
  bool ending_ = false;
  uint64_t passing_ = 0;
  Overlay overlay_;
  std::deque<std::shared_ptr<KeptLog>> logs_;
  std::vector<std::shared_ptr<KeptLog>> stuck_;  // hold what a broken disk never got, for reads
  Status failure_;
};

}  // namespace remusd::disk
