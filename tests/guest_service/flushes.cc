// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/guest_service/flushes.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <thread>
#include <vector>

namespace remusd::guest_service {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kBlockBytes = 4096, kBlocks = 256;

class File {
 public:
  explicit File(const std::string& path) : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// All its blocks are on the disk: a flush of one of them then has no metadata with it.
  bool fill() {
    if (fd_ < 0) return false;
    for (size_t block = 0; block < kBlocks; ++block)
      if (!write(block, block)) return false;
    return fsync(fd_) == 0;
  }
  bool write(size_t block, uint64_t content) {
    data_[content % data_.size()] += content | 1;  // never what was there
    return pwrite(fd_, data_.data(), sizeof data_, static_cast<off_t>(block * kBlockBytes)) == sizeof data_;
  }
  bool flush() const { return fdatasync(fd_) == 0; }

 private:
  int fd_;
  std::array<uint64_t, kBlockBytes / sizeof(uint64_t)> data_{};
};

}  // namespace

std::optional<FlushTimes> time_flushes(const std::string& path, uint32_t count, uint32_t every_us) {
  File file(path);
  if (count == 0 || !file.fill()) return {};
  std::vector<uint64_t> took;
  Clock::time_point next = Clock::now();
  for (uint32_t i = 0; i < count; ++i) {
    if (every_us > 0) std::this_thread::sleep_until(next += std::chrono::microseconds(every_us));
    const auto begun = Clock::now();
    if (!file.write(i * 7 % kBlocks, i) || !file.flush()) {
      std::perror("remusd-guest: flushes");
      return {};
    }
    took.push_back(static_cast<uint64_t>((Clock::now() - begun) / std::chrono::nanoseconds(1)));
  }
  std::nth_element(took.begin(), took.begin() + count / 2, took.end());
  return FlushTimes{count, took[count / 2], std::accumulate(took.begin(), took.end(), uint64_t{0}) / count};
}

}  // namespace remusd::guest_service
