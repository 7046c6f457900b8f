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
// cannot stand before its requests are done. So at the bound there is none, and kMaxBeyondBound comes on top.
//
// Disks that are *held* lie on storage that the backup sees, too: a change of theirs is kept instead of made,
// and written when its epoch is acknowledged (hold.h).
//
// Threads: Observer's calls from the server's thread, mark, pausing, seal and resumed from the epoch thread,
// may_log and log from the copier's, next and acked from the ship thread, "Settling" from the settler's; the
// rest from any.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "ckpt/clock.h"
#include "disk/change.h"
#include "disk/epoch_log.h"
#include "disk/hold.h"
#include "disk/tap_stats.h"

namespace remusd::disk {

class Tap : public Observer {
 public:
  /// `held`: the disks that are held, a bit each. `begin_hold` is called before something is kept; its
  /// failure is may_log()'s.
  explicit Tap(uint64_t limit_bytes, uint32_t held = 0, std::function<Status()> begin_hold = {})
      : limit_bytes_(limit_bytes), hold_(held), begin_hold_(std::move(begin_hold)) {}

  // Observer.
  bool changing(const Change& change, std::span<const std::byte> data) override;
  void changed(const Change& change, int error = 0) override;
  bool flush_held() override;
  bool flush_may_wait() override;
  void flushed_later(int error) override;
  Fate fate(const Change& change) override;
  FlushFate flush_fate(size_t disk) override;
  std::unique_ptr<KeptRun> kept(size_t disk, uint64_t offset, uint64_t bytes, bool content) override;

  /// Before the server starts; outlives it.
  void guard(ChangeGate* gate) { gate_ = gate; }
  /// Called, without a lock, when changes that had to wait may be asked for again. Before the server starts.
  void on_room(std::function<void()> retry) { retry_ = std::move(retry); }

  /// From now on `mark` is told of changes, when they begin and when they are done, on the server's thread.
  void mark(std::function<void(const Change& change)> mark);
  /// False while what an earlier session kept is still being written; a failure: it could not be.
  Result<bool> may_log();
  /// From now on changes go to epoch 1's log; those that began before are still told to `mark`. Does nothing
  /// once off() was called.
  void log();
  uint64_t unlogged() const;  // changes that began before log() and are not done yet
  TapPosition position() const;
  /// Told of changes like mark()'s, in every mode, until it is null. One at a time.
  void follow(std::function<void(const Change& change)> follow);
  /// Waits until `epoch` is acknowledged. False: not by then, or nothing is logged any more.
  bool await_acked(uint64_t epoch, Time deadline) const;
  /// No flush may be answered before let_flushes(): what lies beneath is not the guest's alone yet. Once,
  /// before the guest runs.
  void hold_flushes();
  void let_flushes();
  void pausing();  // the guest is about to be stopped; it runs on again:
  void resumed();
  /// The guest stands at the end of `epoch`, which rises by one from 1.
  void seal(uint64_t epoch);
  /// The next DISK body of `epoch`, appended to *out; false when there is none left. Epochs in order.
  bool next(uint64_t epoch, ckpt::Bytes* out, uint64_t* raw_bytes);
  void acked(uint64_t epoch);  // and all before it
  /// Before a pause: waits while the bound is reached and an acknowledgement may help. False: it did not.
  bool await_room(Time deadline) const;
  /// The session is over. What is logged for the backup is forgotten, and changes pass. Of held disks this
  /// decides nothing: what is kept stays, as after freeze().
  void off();

  // Of held disks: who may write to them.
  void freeze();
  void won();
  void lost();
  uint32_t held_disks() const { return hold_.disks(); }
  bool holds(size_t disk) const { return (held_disks() >> disk & 1U) != 0; }
  uint64_t settled_epoch() const { return settled_epoch_.load(); }  // is on the shared storage, flushed
  /// After freeze(): nothing is on its way to the shared storage any more, which is not locked either.
  bool quiet() const;
  /// After won(): nothing is kept any more, or it cannot be written. False: not by then.
  bool await_passing(Time deadline);
  Status hold_failure() const;  // the first of writing to a held disk
  /// Called, without a lock, when one of these four may have changed; null: nobody. Waits for a call to end.
  void watch_hold(std::function<void()> changed);

  // Settling.
  using Logs = std::vector<std::shared_ptr<KeptLog>>;
  /// Waits for it; `logs` are those to write, in order.
  Hold::Chore next_chore(Logs* logs);
  bool may_write() const { return may_write_.load(); }  // false: stop at once
  /// The oldest so many logs are on the files, and flushed, but for those of disks that are broken.
  void settled(size_t logs);
  void broke(size_t disk, const Status& why);
  void let_go();
  void taken_back();
  void drained();
  void end_settling();  // once nothing is left that may be written

  TapStats stats() const;

 private:
  enum class Mode { off, marking, logging };
  enum class Way : uint8_t { passes, logged, kept };

  uint64_t held_bytes() const { return sealed_bytes_ + open_->log.held_bytes() + hold_.memory_bytes(); }
  bool take_waiting();
  void close_open(uint64_t epoch);
  void tell_hold(std::unique_lock<std::mutex>& lock, bool retry);
  bool has_room(const Change& change) const;

  const uint64_t limit_bytes_;
  std::function<void()> retry_;
  ChangeGate* gate_ = nullptr;
  ckpt::DiskBody body_;  // ship thread

  mutable std::mutex mutex_;
  Mode mode_ = Mode::off;
  std::function<void(const Change&)> mark_, follow_;
  std::map<uint64_t, Way> under_way_;  // changes by their sequence; logged: in a log of this session
  uint64_t unlogged_ = 0;              // of them, those that are not
  bool pausing_ = false, waiting_ = false, holds_flushes_ = false;
  std::shared_ptr<KeptLog> open_ = std::make_shared<KeptLog>();
  std::deque<std::shared_ptr<KeptLog>> sealed_;  // not acknowledged
  uint64_t sealed_bytes_ = 0, last_sealed_ = 0, newest_change_ = 0, acked_ = 0;
  TapStats stats_;

  Hold hold_;
  std::function<Status()> begin_hold_;
  Fate fate_ = Fate::make;  // of the last change
  bool heard_ = true;       // what the guest says leaves at once
  std::atomic<bool> may_write_{false};
  std::atomic<uint64_t> settled_epoch_{0};
  mutable std::condition_variable changed_;
  std::mutex watch_mutex_;
  std::function<void()> watch_;
};

}  // namespace remusd::disk
