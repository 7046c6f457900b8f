// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Load inside the test guest: one thread that dirties pages at a set rate, and one that only computes.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace remusd::guest_service {

/// What a step leaves in its page besides its number in the first word.
enum class Content : uint8_t {
  number = 0,        // nothing more: half of the page is noise that stays, so that lz4 has something to do
  compressible = 1,  // the whole page is written, with a few values that change with each step
  noise = 2,         // the whole page is written with fresh noise
};

/// How the pages are walked. It fits into eight bytes, so that it changes at once.
struct Walk {
  uint32_t pages = 1;  // size of the set
  Content content = Content::number;
  bool shuffled = false;  // in a fixed random order instead of one after another; each page once a lap
};

/// Walks over a set of pages, `rate` pages a second, and writes the number of the step into each. Before it
/// writes, it checks that the page still holds what the walk left there one lap ago: a memory image mixed
/// from two moments shows up as `corrupt`. Threads: run() on one, the rest from any.
class Dirtier {
 public:
  explicit Dirtier(uint32_t pages);

  [[noreturn]] void run();
  void set_rate(uint32_t pages_per_second) { rate_.store(pages_per_second); }
  /// The walk begins anew with the next millisecond. A larger set is allocated then, which takes a while.
  void set_pages(uint32_t pages);
  void set_shuffled(bool shuffled);
  void set_content(Content content);
  uint64_t dirtied() const { return dirtied_.load(); }
  uint64_t corrupt() const { return corrupt_.load(); }

 private:
  void begin(Walk walk);
  void step();
  uint64_t page_of(uint64_t index) const;
  void fill(uint64_t page, uint64_t number);

  std::atomic<Walk> wanted_;
  std::atomic<uint32_t> rate_ = 0;
  std::atomic<uint64_t> dirtied_ = 0, corrupt_ = 0;

  // Of the thread in run().
  Walk walk_;
  uint64_t began_ = 0;  // number of the last step before this walk
  std::vector<uint64_t> memory_;
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
