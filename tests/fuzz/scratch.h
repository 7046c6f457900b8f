// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// For decoders that read from descriptors: a file without a name, a folder that is removed at the end, and a
// peer that has said everything before anybody listens.
#pragma once

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <utility>

#include "ckpt/scoped_fd.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {

/// One file in memory whose content is replaced for each input.
class MemoryFile {
 public:
  MemoryFile() : file_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    REMUSD_ASSERT(file_.valid(), "there is memory for a file");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_.get()); }
  void replace(View content) const {
    REMUSD_ASSERT(::ftruncate(file_.get(), 0) == 0 && ::pwrite(file_.get(), content.data(), content.size(),
                                                               0) == static_cast<ssize_t>(content.size()),
                  "the file takes what it is given");
  }

 private:
  ScopedFd file_;
};

/// In memory where there is such a place: what is made durable there costs no time.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::error_code none;
    const std::string parent = std::filesystem::is_directory("/dev/shm", none) ? "/dev/shm" : "/tmp";
    path_ = parent + "/remusd-fuzz-XXXXXX";
    REMUSD_ASSERT(::mkdtemp(path_.data()) != nullptr, "a folder can be made");
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::pair<ScopedFd, ScopedFd> socket_pair(int type = SOCK_STREAM) {
  int ends[2];
  REMUSD_ASSERT(::socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0,
                "there are sockets");
  return {ScopedFd(ends[0]), ScopedFd(ends[1])};
}

/// Says all of it and nothing more. What does not fit into the socket is left out.
inline void say_and_end(int socket, View bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) break;
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  ::shutdown(socket, SHUT_WR);
}

}  // namespace remusd::fuzz
