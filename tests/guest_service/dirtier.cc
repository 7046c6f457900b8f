// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/guest_service/dirtier.h"

#include <time.h>

#include <algorithm>
#include <bit>

namespace remusd::guest_service {
namespace {

constexpr uint64_t kWordsPerPage = 4096 / sizeof(uint64_t);
constexpr uint32_t kMostPages = 1 << 20;  // 4 GiB
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

bool same(const Walk& a, const Walk& b) {
  return a.pages == b.pages && a.content == b.content && a.shuffled == b.shuffled;
}

}  // namespace

uint64_t uptime_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

Dirtier::Dirtier(uint32_t pages) {
  set_pages(pages);
  begin(wanted_.load());
}

void Dirtier::set_pages(uint32_t pages) {
  Walk walk = wanted_.load();
  walk.pages = std::clamp(pages, 1U, kMostPages);
  wanted_.store(walk);
}

void Dirtier::set_shuffled(bool shuffled) {
  Walk walk = wanted_.load();
  walk.shuffled = shuffled;
  wanted_.store(walk);
}

void Dirtier::set_content(Content content) {
  Walk walk = wanted_.load();
  walk.content = content;
  wanted_.store(walk);
}

void Dirtier::begin(Walk walk) {
  walk_ = walk;
  began_ = dirtied_.load();
  const size_t words = (size_t{walk.pages} + 1) * kWordsPerPage;
  if (memory_.size() < words) {
    memory_ = {};  // First: there may not be room for both.
    memory_.resize(words);
  }
  // Half of each page is noise, so that a compressor has something to do.
  for (uint64_t page = 0; page < walk.pages; ++page) {
    memory_[page * kWordsPerPage] = 0;
    for (uint64_t word = 1; word < kWordsPerPage / 2; ++word) {
      memory_[page * kWordsPerPage + word] = scramble(page * kWordsPerPage + word);
    }
  }
}

// A balanced Feistel network over the next even number of bits, walked on until it falls into the set: a
// fixed permutation without a table, which would be dirtied or cached beside the set.
uint64_t Dirtier::page_of(uint64_t index) const {
  if (!walk_.shuffled || walk_.pages < 2) return index;
  const unsigned half = (static_cast<unsigned>(std::bit_width(walk_.pages - 1U)) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = index >> half, right = index & mask;
    for (uint64_t round = 1; round <= 3; ++round) {
      const uint64_t mixed = left ^ (scramble(right + round * 0x10001) & mask);
      left = right;
      right = mixed;
    }
    index = left << half | right;
  } while (index >= walk_.pages);
  return index;
}

void Dirtier::fill(uint64_t page, uint64_t number) {
  uint64_t* words = &memory_[page * kWordsPerPage];
  for (uint64_t word = 1; word < kWordsPerPage; ++word) {
    words[word] =
        walk_.content == Content::noise ? scramble(number * kWordsPerPage + word) : number + (word / 64);
  }
}

void Dirtier::step() {
  const uint64_t number = dirtied_.load(std::memory_order_relaxed) + 1;  // 1, 2, ...
  const uint64_t page = page_of(number % walk_.pages);
  volatile uint64_t& word = memory_[page * kWordsPerPage];
  const uint64_t left_here = number > began_ + walk_.pages ? number - walk_.pages : 0;
  if (word != left_here) corrupt_.fetch_add(1, std::memory_order_relaxed);
  word = number;
  if (walk_.content != Content::number) fill(page, number);
  dirtied_.store(number, std::memory_order_relaxed);
}

void Dirtier::run() {
  uint64_t last = uptime_ns();
  uint64_t owed = 0;  // In pages x nanoseconds per second.
  for (;;) {
    sleep_ns(kTickNs);
    const uint64_t now = uptime_ns();
    if (const Walk wanted = wanted_.load(); !same(wanted, walk_)) begin(wanted);
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
