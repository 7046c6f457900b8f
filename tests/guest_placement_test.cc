// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "guest/qemu/placement.h"

namespace remusd::guest::qemu {
namespace {

/// Where this thread may run.
cpu_set_t mine() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

/// The n-th of them.
int nth(const cpu_set_t& set, int n) {
  int processor = 0;
  while (!CPU_ISSET(processor, &set) || n-- > 0) ++processor;
  return processor;
}

/// A process that stands for QEMU: it runs on one processor, whichever it is told, and waits there.
class Child {
 public:
  Child() : pid_(::fork()) {
    if (pid_ != 0) return;
    for (;;) ::pause();
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  void move_to(int processor) const {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    ASSERT_EQ(::sched_setaffinity(pid_, sizeof set, &set), 0);
    // It arrives there when it runs again, and has when it has stopped.
    ::kill(pid_, SIGCONT);
    ::kill(pid_, SIGSTOP);
    ::waitpid(pid_, nullptr, WUNTRACED);
  }

 private:
  const pid_t pid_;
};

TEST(Placement, KeepsAwayFromTheOtherThreadWhereverItGoes) {
  const cpu_set_t before = mine();
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "needs two processors";
  const Child qemu;
  std::optional<Placement> placement(std::in_place, qemu.pid());
  EXPECT_FALSE(placement->stands_apart());
  for (const int n : {0, 1, 0}) {
    const int processor = nth(before, n);
    qemu.move_to(processor);
    placement->stand_apart();
    EXPECT_TRUE(placement->stands_apart());
    const cpu_set_t now = mine();
    EXPECT_FALSE(CPU_ISSET(processor, &now));
    EXPECT_EQ(CPU_COUNT(&now), CPU_COUNT(&before) - 1);
  }
  *placement = {};
  const cpu_set_t after = mine();
  EXPECT_TRUE(CPU_EQUAL(&after, &before));
}

TEST(Placement, AThreadThatMayUseOneProcessorStays) {
  const cpu_set_t before = mine();
  const Child qemu;
  qemu.move_to(nth(before, 0));
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(nth(before, 0), &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  Placement placement(qemu.pid());
  placement.stand_apart();
  EXPECT_FALSE(placement.stands_apart());
  const cpu_set_t now = mine();
  EXPECT_TRUE(CPU_EQUAL(&now, &one));
  ASSERT_EQ(::sched_setaffinity(0, sizeof before, &before), 0);
}

TEST(Placement, AProcessThatIsGoneDoesNotMatter) {
  Placement placement(1 << 30);
  placement.stand_apart();
  EXPECT_FALSE(placement.stands_apart());
}

}  // namespace
}  // namespace remusd::guest::qemu
