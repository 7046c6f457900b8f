// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest/qemu/priority.h"

namespace remusd::guest::qemu {
namespace {

TEST(PausePriority, RaisesTheMainThreadAndGivesItsPriorityBack) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  const auto nice_of = [&] { return ::getpriority(PRIO_PROCESS, static_cast<id_t>(child)); };
  const int before = nice_of();
  int during = 0;
  {
    PausePriority priority(child);
    during = nice_of();
    PausePriority moved = std::move(priority);
    EXPECT_EQ(nice_of(), during);
    moved = {};
    EXPECT_EQ(nice_of(), before);
    moved = PausePriority(child);
  }
  EXPECT_EQ(nice_of(), before);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  if (during == before) GTEST_SKIP() << "raising a thread's priority needs CAP_SYS_NICE";
  EXPECT_LT(during, before);
}

TEST(PausePriority, AProcessThatIsGoneDoesNotMatter) {
  const PausePriority priority(1 << 30);
}

}  // namespace
}  // namespace remusd::guest::qemu
