// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What becomes of a request that was checked and admitted: it is counted, the observer (change.h) is told or
// asked of it, and by what that says it goes to its disk's drive, waits, or is answered without the drive.
//
//   a change --told--> under way --changed()--> answered, a FUA write once it is flushed
//       \--no room, or others wait--> held --retry(), told--> under way
//   a flush --> with the drive --> answered; or answered at once, and then perhaps flushed for nobody
//       \--may not yet--> held --retry()--> as if it came then
//
// What always holds: the observer is told of changes in the order in which they came, and takes each once,
// with sequence numbers from 1 without a gap. Of each that it took it hears once that it has been changed,
// before the client is answered.
//
// Threads: doubt, drain and idle from any; the rest from the server's.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "ckpt/clock.h"
#include "disk/change.h"
#include "disk/drive.h"
#include "disk/job.h"

namespace remusd::disk {

class Dispatcher final : public Drive::Owner {
 public:
  /// `observer` outlives it; null: nobody is told. `one_job`: there is one, over all disks.
  Dispatcher(Observer* observer, std::function<bool()> one_job)
      : observer_(observer), one_job_(std::move(one_job)) {}

  /// The next disk, from number 0; the drive's owner is this. Before the first request.
  void add(Drive* drive) { drives_.push_back(drive); }

  /// Each ends in Connection::answer(), perhaps before it returns, unless drop_held() comes before.
  void carry_out(Job* job);
  void refuse(Job* job, nbd::Error error);

  /// The observer has room again, or holds flushes no more.
  void retry();
  /// Ends what is held, unanswered.
  void drop_held();

  /// Server::doubt() and Server::drain().
  void doubt() { doubt_ = true; }
  bool drain(Time deadline);
  /// No change that the observer was told of is under way.
  bool idle() const { return changing_.load() == 0; }

 private:
  size_t disk_of(const Job& job) const;
  Change change_of(const Job& job) const;
  void change(Job* job);
  bool tell(Job* job);
  void make(Job* job);
  bool look_at_kept(Job* job);
  void flush(Job* job);

  void done(Job* job, int error) override;
  void flushed_later(int error) override;
  void changed(Job* job, int error) override;
  bool one_job() const override { return one_job_(); }

  Observer* const observer_;
  const std::function<bool()> one_job_;
  std::vector<Drive*> drives_;  // by the disk's number
  std::deque<Job*> held_;       // changes that the observer has not been told of, in their order
  std::vector<Job*> held_flushes_;
  uint64_t next_sequence_ = 1;

  std::atomic<bool> doubt_ = false;
  std::atomic<size_t> changing_ = 0, draining_ = 0;
  std::mutex drained_lock_;
  std::condition_variable drained_;
};

}  // namespace remusd::disk
