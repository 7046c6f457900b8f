// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/priority.h"

#include <sys/resource.h>

#include <cerrno>

#include "ckpt/thread.h"
#include "guest/qemu/pause_threads.h"

namespace remusd::guest::qemu {

PausePriority::PausePriority(int pid) {
  for (const int thread : pause_threads(pid)) {
    errno = 0;
    const int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(thread));
    if (errno == 0 && ::setpriority(PRIO_PROCESS, static_cast<id_t>(thread), urgent_nice()) == 0)
      before_.emplace_back(thread, nice);
  }
}

PausePriority::~PausePriority() {
  for (const auto& [thread, nice] : before_)
    (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(thread), nice);
}

}  // namespace remusd::guest::qemu
