// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/guest_service/dirtier.h"

#include <time.h>

#include <algorithm>

namespace remusd::guest_service {
namespace {

constexpr uint64_t kWordsPerPage = 4096 / sizeof(uint64_t);
constexpr uint64_t kTickNs = 1'000'000;
// A guest that was stopped for longer than this does not make up for it: lost time shows as lost progress.
constexpr uint64_t kMostOwedNs = 20'000'000;

uint64_t scramble(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

void sleep_ns(uint64_t ns) {
  const timespec wanted{.tv_sec = static_cast<time_t>(ns / 1'000'000'000),
                        .tv_nsec = static_cast<long>(ns % 1'000'000'000)};
  nanosleep(&wanted, nullptr);
}

}  // namespace

uint64_t uptime_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// Half of each page is noise, so that a compressor has something to do.
Dirtier::Dirtier(uint32_t pages) : pages_(std::max(pages, 1U)), memory_((pages_ + 1) * kWordsPerPage) {
  for (uint64_t page = 0; page < pages_; ++page) {
    for (uint64_t word = 1; word < kWordsPerPage / 2; ++word) {
      memory_[page * kWordsPerPage + word] = scramble(page * kWordsPerPage + word);
    }
  }
}

void Dirtier::step() {
  const uint64_t number = dirtied_.load(std::memory_order_relaxed) + 1;  // 1, 2, ...
  volatile uint64_t& word = memory_[(number % pages_) * kWordsPerPage];
  const uint64_t left_here = number > pages_ ? number - pages_ : 0;
  if (word != left_here) corrupt_.fetch_add(1, std::memory_order_relaxed);
  word = number;
  dirtied_.store(number, std::memory_order_relaxed);
}

void Dirtier::run() {
  uint64_t last = uptime_ns();
  uint64_t owed = 0;  // In pages x nanoseconds per second.
  for (;;) {
    sleep_ns(kTickNs);
    const uint64_t now = uptime_ns();
    owed += std::min(now - last, kMostOwedNs) * rate_.load();
    last = now;
    for (; owed >= 1'000'000'000; owed -= 1'000'000'000) step();
  }
}

void Spinner::run() {
  uint64_t value = 1;
  for (;;) {
    on_.wait(false);
    while (on_.load(std::memory_order_relaxed)) {
      for (int i = 0; i < 1000; ++i) value = scramble(value);
      // The result is used, so the compiler must compute it.
      iterations_.fetch_add(value == 0 ? 2 : 1, std::memory_order_relaxed);
    }
  }
}

}  // namespace remusd::guest_service
