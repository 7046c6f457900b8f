// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A SimMachine in real time: a thread named "sim" runs one virtual millisecond per millisecond, answers
// frames, and never holds the lock longer than that. pause() takes effect between two steps; while paused the
// thread touches neither memory nor sockets, so every frame sent before is in the sockets already.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/clock.h"
#include "guest/guest.h"
#include "guest/sim/card.h"
#include "guest/sim/machine.h"

namespace remusd::guest::sim {

class SimGuest : public Guest {
 public:
  /// Runs at once. One card for each of machine.config().cards.
  SimGuest(Facts facts, std::vector<NicEndpoint> nics, SimMachine machine,
           std::vector<std::unique_ptr<Card>> cards);
  ~SimGuest() override;

  const Facts& facts() const override { return facts_; }
  const std::vector<NicEndpoint>& nics() const override { return nics_; }
  std::span<const std::byte> memory() const override { return machine_.memory(); }
  int pid() const override { return 0; }
  Status start_tracking() override;
  Status stop_tracking() override;
  std::string tracker_name() const override;
  Status collect_dirty(PageSet* dirty) override;
  void assume_written(const PageSet& pages) override;
  Status pause() override;
  Result<std::span<const std::byte>> save() override;
  Status resume() override;
  Result<std::vector<std::byte>> base_stream() override;
  Status destroy() override;
  Residue take_memory() override;
  /// The machine halts; the event is powered_off.
  Status power_button() override;
  std::vector<Event> take_events() override;
  /// A simulated hypervisor offers none.
  Status announce() override { return {}; }

 private:
  /// The lock, which the thread leaves to whoever asks for it from outside.
  class Lock;

  void run();
  void work();
  void exchange_frames();
  Status gone() const;

  const Facts facts_;
  const std::vector<NicEndpoint> nics_;
  mutable std::mutex mutex_;
  mutable std::condition_variable left_;      // the last caller from outside has left, or the state changed
  mutable std::atomic<int> callers_ = 0;      // lowered under mutex_
  SimMachine machine_;                        // under mutex_, memory() apart
  std::vector<std::unique_ptr<Card>> cards_;  // under mutex_
  std::vector<std::byte> saved_;
  std::vector<Event> events_;  // at most one of each kind
  bool paused_ = false;
  bool tracking_ = false;
  PageSet assumed_;
  bool destroyed_ = false;
  Time next_step_;
  std::mutex join_mutex_;  // taken before mutex_; destroy() may be called by several threads
  std::thread thread_;
};

}  // namespace remusd::guest::sim
