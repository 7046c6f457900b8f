// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The guest's RAM as QEMU holds it: a shared memory file, found through /proc and mapped here as well.
#pragma once

#include <string>

#include "ckpt/mapping.h"
#include "ckpt/pages.h"
#include "ckpt/scoped_fd.h"
#include "guest/qemu/tracker.h"

namespace remusd::guest::qemu {

struct Ram {
  std::string block;   // QEMU's name of the RAM block
  ScopedFd file;       // the memory file, opened anew
  Mapping mapping;     // of the whole file
  TrackedRange range;  // QEMU's own mapping of it
};

/// Finds the shared mapping of `bytes` bytes in process `pid` that is backed by a memory file: QEMU's memfd,
/// or `mem_path` when it is not empty. Fails with `unsafe` when there is none or not exactly one.
Result<Ram> open_ram(int pid, uint64_t bytes, const std::string& mem_path, bool writable);

/// Gives every page of the file back: it reads as zeros then.
Status clear_pages(int fd, uint64_t bytes);

}  // namespace remusd::guest::qemu
