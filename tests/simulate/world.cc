// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/world.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "ckpt/status.h"

namespace remusd::simulate {
namespace {

constexpr size_t kTraceLimit = 16u << 20;

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

uint64_t Random::next() {
  return mix(state_ += 0x9e3779b97f4a7c15);
}

World::World(uint64_t seed, Plant plant, std::string* trace)
    : random_(mix(seed + 1)), plant_(plant), trace_(trace) {
  heap_.reserve(256);
  slots_.reserve(256);
  for (Host& host : hosts_) host.clock_offset = random_.between(Duration::zero(), std::chrono::hours(100));
}

void World::push(Time when, uint32_t slot) {
  heap_.push_back({when, order_++, slot});
  std::push_heap(heap_.begin(), heap_.end());
}

void World::add(HostId host, Duration delay, Task task) {
  REMUSD_ASSERT(delay >= Duration::zero(), "the past cannot be changed");
  uint32_t slot = 0;
  if (free_slots_.empty()) {
    slot = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  slots_[slot] = {std::move(task), host, host == kOutside ? 0 : hosts_[host].incarnation};
  push(now_ + delay, slot);
}

void World::set_up(HostId host, bool up) {
  hosts_[host].up = up;
  ++hosts_[host].incarnation;
  hosts_[host].frozen_until = {};
}

void World::freeze(HostId host, Duration how_long) {
  hosts_[host].frozen_until = std::max(hosts_[host].frozen_until, now_ + how_long);
}

void World::run_until(Time end, const std::function<bool()>& done) {
  while (!heap_.empty() && heap_.front().when <= end && !violated() && !done()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const Entry entry = heap_.back();
    heap_.pop_back();
    now_ = entry.when;
    Slot& slot = slots_[entry.slot];
    if (slot.host != kOutside) {
      const Host& host = hosts_[slot.host];
      if (host.up && host.incarnation == slot.incarnation && host.frozen_until > now_) {
        push(host.frozen_until, entry.slot);  // In the order in which they came due.
        continue;
      }
      if (!host.up || host.incarnation != slot.incarnation) {
        slot.task = nullptr;
        free_slots_.push_back(entry.slot);
        continue;
      }
    }
    const Task task = std::move(slot.task);
    slot.task = nullptr;
    free_slots_.push_back(entry.slot);
    ++stats_.events;
    task();
  }
}

void World::note(HostId who, std::string_view what, uint64_t number) {
  const uint64_t time = static_cast<uint64_t>((now_ - Time(std::chrono::hours(1))).count());
  digest_ = mix(digest_ ^ time ^ (number << 8) ^ who) + XXH3_64bits(what.data(), what.size());
  if (trace_ == nullptr || trace_->size() > kTraceLimit) return;
  char line[64];
  std::snprintf(line, sizeof line, "%12.3f ms  %-8s", static_cast<double>(time) / 1e6, name_of(who));
  trace_->append(line).append(what);
  if (number != kNoNumber) trace_->append(" ").append(std::to_string(number));
  trace_->push_back('\n');
}

void World::violation(const std::string& why) {
  if (violated()) return;
  violation_ = why;
  note(kOutside, "VIOLATION: " + why);
}

}  // namespace remusd::simulate
