// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Load inside the test guest: one thread that dirties pages at a set rate, and one that only computes.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace remusd::guest_service {

/// Walks over `pages` pages, `rate` pages a second, and writes the number of the step into each. Before it
/// writes, it checks that the page still holds what the walk left there one lap ago: a memory image mixed
/// from two moments shows up as `corrupt`. Threads: run() on one, the rest from any.
class Dirtier {
 public:
  explicit Dirtier(uint32_t pages);

  [[noreturn]] void run();
  void set_rate(uint32_t pages_per_second) { rate_.store(pages_per_second); }
  uint64_t dirtied() const { return dirtied_.load(); }
  uint64_t corrupt() const { return corrupt_.load(); }

 private:
  void step();

  const uint64_t pages_;
  std::vector<uint64_t> memory_;
  std::atomic<uint32_t> rate_ = 0;
  std::atomic<uint64_t> dirtied_ = 0, corrupt_ = 0;
};

/// Counts iterations of a fixed piece of computing while it is switched on: how much processor the guest
/// gets.
class Spinner {
 public:
  [[noreturn]] void run();
  void switch_on(bool on) {
    on_.store(on);
    on_.notify_one();
  }
  uint64_t iterations() const { return iterations_.load(); }

 private:
  std::atomic<bool> on_ = false;
  std::atomic<uint64_t> iterations_ = 0;
};

/// Nanoseconds since the guest's boot.
uint64_t uptime_ns();

}  // namespace remusd::guest_service
