// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Virtual time, chance and the order of events: the only source of each, so that a seed fixes a run bit by
// bit. Hosts are here as far as events care: one that is down loses its events, one that is frozen gets them
// late. One thread, no clock, no descriptor.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/clock.h"
#include "tests/simulate/plants.h"

namespace remusd::simulate {

using std::chrono::microseconds;
using std::chrono::milliseconds;

using Task = std::function<void()>;

/// Who an event or a line of the trace belongs to.
enum HostId : uint8_t { kA = 0, kB = 1, kOutside = 2 };
inline constexpr size_t kHosts = 2;
inline HostId other(HostId host) {
  return host == kA ? kB : kA;
}
inline const char* name_of(HostId host) {
  return host == kA ? "a" : host == kB ? "b" : "outside";
}

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): made in no time.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next();
  /// 0 to n - 1. REQUIRES: n > 0.
  uint64_t below(uint64_t n) { return next() % n; }
  bool chance(uint32_t percent) { return percent > 0 && below(100) < percent; }
  bool per_mille(uint32_t count) { return count > 0 && below(1000) < count; }
  Duration between(Duration low, Duration high) {
    return low + Duration(static_cast<Duration::rep>(below(static_cast<uint64_t>((high - low).count()) + 1)));
  }

 private:
  uint64_t state_;
};

/// What a run did, over all seeds.
struct Stats {
  uint64_t failovers = 0, partitions = 0, crashes = 0, freezes = 0, epochs = 0;
  uint64_t passes = 0;       // a primary won the right to run alone
  uint64_t fences = 0;       // a primary lost it
  uint64_t guests_lost = 0;  // with both their hosts, or with the one that ran alone
  uint64_t switchovers = 0, loads_failed = 0;
  uint64_t disk_failures = 0;      // of a replica's disk or journal
  uint64_t guest_disk_errors = 0;  // told to a guest
  uint64_t replays = 0;            // recoveries that had something to replay
  uint64_t corruptions = 0, resets = 0, ambiguous = 0, events = 0, requests = 0;
};

class World {
 public:
  /// `trace` (may be null) gets a line for each note().
  World(uint64_t seed, Plant plant, std::string* trace);

  Random& random() { return random_; }
  Time now() const { return now_; }
  bool plant(Plant plant) const { return plant_ == plant; }
  Stats& stats() { return stats_; }

  /// Runs `task` later: in the outside world, or on a host if that is still the same incarnation by then.
  void after(Duration delay, Task task) { add(kOutside, delay, std::move(task)); }
  void at_host(HostId host, Duration delay, Task task) { add(host, delay, std::move(task)); }

  bool up(HostId host) const { return hosts_[host].up; }
  bool frozen(HostId host) const { return hosts_[host].frozen_until > now_; }
  uint32_t incarnation(HostId host) const { return hosts_[host].incarnation; }
  void set_up(HostId host, bool up);
  void freeze(HostId host, Duration how_long);
  /// A host's clock: monotonic, but of its own origin, and it may jump.
  Time clock(HostId host) const { return now_ + hosts_[host].clock_offset; }
  void shift_clock(HostId host, Duration by) { hosts_[host].clock_offset += by; }

  /// Runs until `end`, until there is nothing to do, until `done`, or until a violation.
  void run_until(Time end, const std::function<bool()>& done);

  /// One line of the trace; `what` with `number` must tell all that matters, since they make the digest.
  void note(HostId who, std::string_view what, uint64_t number);
  void note(HostId who, std::string_view what) { note(who, what, kNoNumber); }
  bool tracing() const { return trace_ != nullptr; }
  uint64_t digest() const { return digest_; }

  void violation(const std::string& why);
  bool violated() const { return !violation_.empty(); }
  const std::string& why() const { return violation_; }

 private:
  static constexpr uint64_t kNoNumber = ~uint64_t{0};
  struct Host {
    bool up = true;
    uint32_t incarnation = 1;
    Time frozen_until{};
    Duration clock_offset{};
  };
  struct Entry {  // of the heap; the task stays where it is
    Time when;
    uint32_t order;
    uint32_t slot;
    bool operator<(const Entry& that) const {
      return when != that.when ? when > that.when : order > that.order;
    }
  };
  struct Slot {
    Task task;
    HostId host = kOutside;
    uint32_t incarnation = 0;
  };

  void add(HostId host, Duration delay, Task task);
  void push(Time when, uint32_t slot);

  Random random_;
  const Plant plant_;
  Time now_{std::chrono::hours(1)};
  std::array<Host, kHosts> hosts_;
  std::vector<Entry> heap_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  uint32_t order_ = 0;
  Stats stats_;
  uint64_t digest_ = 0;
  std::string* trace_;
  std::string violation_;
};

}  // namespace remusd::simulate
