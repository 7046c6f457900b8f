// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/thread.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace remusd {
namespace {

constexpr int kUrgentBy = 15;
constexpr int kLowestNice = -20;

}  // namespace

int own_nice() {
  // Linux keeps it per thread; the main thread's number is the process's, and it never changes its own.
  return ::getpriority(PRIO_PROCESS, static_cast<id_t>(::getpid()));
}

int urgent_nice() {
  return std::max(own_nice() - kUrgentBy, kLowestNice);
}

void begin_thread(const char* name, Urgency urgency) {
  ::pthread_setname_np(::pthread_self(), name);
  const bool urgent = urgency == Urgency::urgent;
  // Refused without the right to it: then it runs like any other.
  (void)::setpriority(PRIO_PROCESS, 0, urgent ? urgent_nice() : own_nice());
  // 0: back to the default, 50 us.
  (void)::prctl(PR_SET_TIMERSLACK, urgent ? 1UL : 0UL);
}

}  // namespace remusd
