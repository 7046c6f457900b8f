// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/guest_service/disk_load.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace remusd::guest_service {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kSmallBytes = 4096, kLargeBytes = size_t{1} << 20, kFileBytes = size_t{64} << 20;
constexpr size_t kDepth = 16;

class File {
 public:
  File(const std::string& path, int flags)
      : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0644)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Block = std::unique_ptr<uint64_t, Free>;

/// Noise: nothing on the way makes it smaller.
Block make_block(size_t bytes, uint64_t seed) {
  Block block(static_cast<uint64_t*>(std::aligned_alloc(kSmallBytes, bytes)));
  std::mt19937_64 random(seed);
  std::generate_n(block.get(), bytes / sizeof(uint64_t), std::ref(random));
  return block;
}

bool make_file(const std::string& path) {
  const File file(path, 0);
  if (file.fd() < 0) return false;
  if (lseek(file.fd(), 0, SEEK_END) == static_cast<off_t>(kFileBytes)) return true;
  const Block block = make_block(kLargeBytes, 1);
  for (size_t at = 0; at < kFileBytes; at += kLargeBytes)
    if (pwrite(file.fd(), block.get(), kLargeBytes, static_cast<off_t>(at)) != kLargeBytes) return false;
  return fsync(file.fd()) == 0;
}

}  // namespace

std::optional<FlushTimes> time_flushes(const std::string& path, uint32_t count, uint32_t every_us) {
  if (count == 0 || !make_file(path)) return {};
  const File file(path, 0);
  const Block block = make_block(kSmallBytes, 2);
  std::vector<uint64_t> took;
  Clock::time_point next = Clock::now();
  for (uint32_t i = 0; i < count; ++i) {
    if (every_us > 0) std::this_thread::sleep_until(next += std::chrono::microseconds(every_us));
    const auto at = static_cast<off_t>(i * 7 * kSmallBytes % kLargeBytes);
    *block = i;
    const auto begun = Clock::now();
    if (pwrite(file.fd(), block.get(), kSmallBytes, at) != kSmallBytes || fdatasync(file.fd()) != 0) {
      std::perror("remusd-guest: flushes");
      return {};
    }
    took.push_back(static_cast<uint64_t>((Clock::now() - begun) / std::chrono::nanoseconds(1)));
  }
  std::nth_element(took.begin(), took.begin() + count / 2, took.end());
  return FlushTimes{count, took[count / 2], std::accumulate(took.begin(), took.end(), uint64_t{0}) / count};
}

std::optional<uint64_t> transfer(const std::string& path, Pattern pattern, uint32_t milliseconds) {
  if (!make_file(path)) return {};
  const bool random = pattern == Pattern::random_read || pattern == Pattern::random_write;
  const bool writes = pattern == Pattern::random_write || pattern == Pattern::write;
  const size_t bytes = random ? kSmallBytes : kLargeBytes;
  const File file(path, O_DIRECT);
  std::atomic<uint64_t> begun = 0, done = 0;
  std::atomic<bool> failed = file.fd() < 0;
  const auto until = Clock::now() + std::chrono::milliseconds(milliseconds);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kDepth; ++i) {
    threads.emplace_back([&, i] {
      const Block block = make_block(bytes, i);
      std::minstd_rand chance(static_cast<unsigned>(i + 1));
      while (!failed && Clock::now() < until) {
        const uint64_t number = begun.fetch_add(1);
        const auto at = static_cast<off_t>((random ? chance() : number) % (kFileBytes / bytes) * bytes);
        *block = number;
        const ssize_t moved =
            writes ? pwrite(file.fd(), block.get(), bytes, at) : pread(file.fd(), block.get(), bytes, at);
        if (moved == static_cast<ssize_t>(bytes))
          done.fetch_add(1);
        else
          failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failed ? std::nullopt : std::optional(done.load());
}

}  // namespace remusd::guest_service
