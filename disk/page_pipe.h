// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// From the page cache into a socket without a copy: a pipe that holds pages of a file, not their content.
// What is written there before the peer has received it may be what it receives, as for any two requests of
// which neither waits for the other.
//
// It needs a kernel that tells what is cached (cachestat, 6.5); elsewhere it takes nothing. Its descriptors
// are its own, from the first run that it takes on; files and sockets are its caller's. Not thread-safe.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "ckpt/scoped_fd.h"

namespace remusd::disk {

class PagePipe {
 public:
  static constexpr size_t kPageBytes = 4096, kMostBytes = size_t{1} << 20;

  /// Takes a run of a file. False: it has taken nothing, because it is not empty, the run is longer than
  /// kMostBytes or does not begin with a page, or not all of it is cached. A page that is just being read
  /// counts as cached, and is waited for.
  bool fill(int file, uint64_t offset, size_t bytes);
  size_t bytes() const { return bytes_; }
  /// Moves to a stream socket what that takes without waiting. As send(): how much, or -1 and errno.
  /// REQUIRES: bytes() > 0; the thread blocks SIGPIPE, or the process ignores it.
  ssize_t move_to(int socket);

 private:
  bool open();
  bool cached(int file, uint64_t offset, size_t bytes);

  ScopedFd in_, out_;  // while it is used
  size_t bytes_ = 0;
  bool unable_ = false;  // and will not become so
};

}  // namespace remusd::disk
