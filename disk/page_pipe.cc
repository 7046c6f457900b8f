// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/page_pipe.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "ckpt/status.h"

namespace remusd::disk {
namespace {

// cachestat(2), which headers older than it do not have.
constexpr long kCacheStat = 451;
struct CacheStatRange {
  uint64_t offset, bytes;
};
struct CacheStat {
  uint64_t cached_pages, dirty, writeback, evicted, recently_evicted;
};

/// Splices wait for room in a socket unless that is told never to wait, and the ring does not wait for such.
class NeverWaiting {
 public:
  explicit NeverWaiting(int socket) : socket_(socket) { set(1); }
  ~NeverWaiting() { set(0); }
  NeverWaiting(const NeverWaiting&) = delete;
  NeverWaiting& operator=(const NeverWaiting&) = delete;

 private:
  void set(int on) const {
    const int error = errno;
    REMUSD_ASSERT(::ioctl(socket_, FIONBIO, &on) == 0, "every socket can be told so");
    errno = error;
  }
  int socket_;
};

}  // namespace

bool PagePipe::open() {
  if (in_) return true;
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return false;
  out_.reset(ends[0]);
  in_.reset(ends[1]);
  if (::fcntl(in_.get(), F_SETPIPE_SZ, static_cast<int>(kMostBytes)) == static_cast<int>(kMostBytes))
    return true;
  in_.reset();  // More pipes than this user may have: another time.
  return false;
}

bool PagePipe::cached(int file, uint64_t offset, size_t bytes) {
  const CacheStatRange range{offset, bytes};
  CacheStat found{};
  if (::syscall(kCacheStat, file, &range, &found, 0) != 0) {
    unable_ = true;
    return false;
  }
  return found.cached_pages >= (bytes + kPageBytes - 1) / kPageBytes;
}

bool PagePipe::fill(int file, uint64_t offset, size_t bytes) {
  if (unable_ || bytes_ > 0 || bytes > kMostBytes || offset % kPageBytes != 0) return false;
  if (!cached(file, offset, bytes) || !open()) return false;
  auto at = static_cast<loff_t>(offset);
  while (bytes_ < bytes) {
    const ssize_t got = ::splice(file, &at, in_.get(), nullptr, bytes - bytes_, SPLICE_F_NONBLOCK);
    if (got <= 0) {
      // The file has become shorter, or cannot be read: who reads it finds out. Half of it is not passed on.
      if (got < 0 && errno == EINVAL) unable_ = true;
      in_.reset();
      bytes_ = 0;
      return false;
    }
    bytes_ += static_cast<size_t>(got);
  }
  return true;
}

ssize_t PagePipe::move_to(int socket) {
  const NeverWaiting never_waiting(socket);
  const ssize_t moved = ::splice(out_.get(), nullptr, socket, nullptr, bytes_, SPLICE_F_NONBLOCK);
  if (moved > 0) bytes_ -= static_cast<size_t>(moved);
  return moved;
}

}  // namespace remusd::disk
