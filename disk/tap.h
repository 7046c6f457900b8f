// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Output commit for a guest's disks: every change gets the epoch in which the guest made it.
//
//   off --mark()--> marking --log()--> logging --off()--> off
//
// off: the guest is not protected; changes pass. marking: the disks are being copied for the first time; what
// changes meanwhile is marked, to be copied again. logging: changes are kept with their content in the open
// epoch. seal() closes it while the guest stands and none of its requests is under way.
//
// What always holds: a change is in the log of the epoch whose memory remembers it, or of an earlier one,
// never of a later one: the hypervisor finishes all requests before it says that the guest stands.
//
// Bound: the bytes held by epochs that are not acknowledged. At the bound changes wait (Observer::changing is
// false), and with them the guest's disk, until an epoch is acknowledged. In a pause all are taken: a guest
// cannot stand before its requests are done, and it has but a few of them.
//
// Threads: Observer's calls from the server's thread, mark, log, pausing, seal and resumed from the epoch
// thread, next and acked from the ship thread; the rest from any.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "ckpt/clock.h"
#include "disk/change.h"
#include "disk/epoch_log.h"

namespace remusd::disk {

struct TapStats {
  uint64_t held_bytes = 0, limit_bytes = 0;
  uint64_t waits = 0;            // times a change had to wait for room
  uint64_t written_bytes = 0;    // by the guest, while it was logged
  uint64_t committed_bytes = 0;  // sent and acknowledged: each byte once for each epoch
  uint64_t flushes_later = 0;    // answered while the guest stood
  int flush_error = 0;           // errno of one of those that failed; 0: none
};

/// How far the guest has come.
struct TapPosition {
  uint64_t open_epoch = 0;                 // takes the changes from now on
  uint64_t newest_change = 0;              // sequence of the last one that was told
  uint64_t oldest_under_way = UINT64_MAX;  // of those that are not done
};

/// Asked before anything else of a change happens. Server's thread; does not block.
class ChangeGate {
 public:
  virtual ~ChangeGate() = default;
  /// False: it waits, as for room.
  virtual bool touch(const Change& change) = 0;
};

class Tap : public Observer {
 public:
  explicit Tap(uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  // Observer.
  bool changing(const Change& change, std::span<const std::byte> data) override;
  void changed(const Change& change) override;
  bool flush_held() override;
  bool flush_may_wait() override;
  void flushed_later(int error) override;

  /// Before the server starts; outlives it.
  void guard(ChangeGate* gate) { gate_ = gate; }
  /// Called, without a lock, when changes that had to wait may be asked for again. Before the server starts.
  void on_room(std::function<void()> retry) { retry_ = std::move(retry); }

  /// From now on `mark` is told of changes, when they begin and when they are done, on the server's thread.
  void mark(std::function<void(const Change& change)> mark);
  /// From now on changes go to epoch 1's log; those that began before are still told to `mark`. Does nothing
  /// once off() was called.
  void log();
  /// Changes that began before log() and are not done yet.
  uint64_t unlogged() const;
  TapPosition position() const;
  /// Told of changes like mark()'s, in every mode, until it is null. One at a time.
  void watch(std::function<void(const Change& change)> watch);
  /// Waits until `epoch` is acknowledged. False: not by then, or nothing is logged any more.
  bool await_acked(uint64_t epoch, Time deadline) const;
  /// No flush may be answered before let_flushes(): what lies beneath is not the guest's alone yet. Once,
  /// before the guest runs.
  void hold_flushes();
  void let_flushes();
  /// The guest is about to be stopped, and runs on again.
  void pausing();
  void resumed();
  /// The guest stands at the end of `epoch`, which rises by one from 1.
  void seal(uint64_t epoch);
  /// The next DISK body of `epoch`, appended to *out; false when there is none left. Epochs in order.
  bool next(uint64_t epoch, ckpt::Bytes* out, uint64_t* raw_bytes);
  /// All of `epoch` and before is acknowledged.
  void acked(uint64_t epoch);
  /// What is held is forgotten, and changes pass.
  void off();

  TapStats stats() const;

 private:
  enum class Mode { off, marking, logging };
  struct Sealed {
    uint64_t epoch = 0;
    EpochLog log;
    uint64_t held_bytes = 0, raw_bytes = 0;
  };

  uint64_t held_bytes() const { return sealed_bytes_ + open_.held_bytes(); }
  bool take_waiting();

  const uint64_t limit_bytes_;
  std::function<void()> retry_;
  ChangeGate* gate_ = nullptr;
  ckpt::DiskBody body_;  // ship thread

  mutable std::mutex mutex_;
  mutable std::condition_variable acked_changed_;
  Mode mode_ = Mode::off;
  std::function<void(const Change&change)> mark_, watch_;
  std::map<uint64_t, bool>
      under_way_;          // changes by their sequence: whether they are in a log of this session
  uint64_t unlogged_ = 0;  // of them, those that are not
  bool pausing_ = false, waiting_ = false, holds_flushes_ = false;
  EpochLog open_;
  std::deque<std::shared_ptr<Sealed>> sealed_;
  uint64_t sealed_bytes_ = 0, last_sealed_ = 0, newest_change_ = 0, acked_ = 0;
  TapStats stats_;
};

}  // namespace remusd::disk
