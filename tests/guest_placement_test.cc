// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <optional>
#include <thread>

#include "ckpt/clock.h"
#include "guest/qemu/pause_threads.h"
#include "guest/qemu/placement.h"

namespace remusd::guest::qemu {
namespace {

/// Where this thread, or another, may run.
cpu_set_t allowed(pid_t thread = 0) {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(thread, sizeof set, &set), 0);
  return set;
}

/// The n-th of them.
int nth(const cpu_set_t& set, int n) {
  int processor = 0;
  while (!CPU_ISSET(processor, &set) || n-- > 0) ++processor;
  return processor;
}

/// Whether this process has the right to that (CAP_SYS_NICE).
bool may_be_real_time() {
  const sched_param least{::sched_get_priority_min(SCHED_FIFO)}, none{};
  return ::sched_setscheduler(0, SCHED_FIFO, &least) == 0 && ::sched_setscheduler(0, SCHED_OTHER, &none) == 0;
}

/// A process that stands for QEMU, with a vCPU that runs where it is told, and waits there.
class Child {
 public:
  explicit Child(const char* vcpu = "CPU 0/TCG") : pid_(::fork()) {
    if (pid_ == 0) {
      std::thread([vcpu] {
        ::prctl(PR_SET_NAME, vcpu);
        for (;;) ::pause();
      }).detach();
      for (;;) ::pause();
    }
    const Time deadline = Clock::now() + std::chrono::seconds(10);
    while (vcpu_thread(pid_) == 0 && Clock::now() < deadline && *vcpu == 'C') std::this_thread::yield();
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  void let_vcpu_go(const cpu_set_t& set) const {
    ASSERT_EQ(::sched_setaffinity(vcpu_thread(pid_), sizeof set, &set), 0);
  }
  void move_vcpu_to(int processor) const {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    let_vcpu_go(set);
    // It arrives there when it runs again, and has when it has stopped.
    ::kill(pid_, SIGCONT);
    ::kill(pid_, SIGSTOP);
    ::waitpid(pid_, nullptr, WUNTRACED);
  }

 private:
  const pid_t pid_;
};

TEST(Placement, TheEpochThreadGoesWhereTheVcpuIsAndQemusMainThreadLeaves) {
  const cpu_set_t before = allowed();
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "needs two processors";
  const Child qemu;
  std::optional<Placement> placement(std::in_place, qemu.pid());
  EXPECT_FALSE(placement->stands_apart());
  const bool real_time = may_be_real_time();
  for (const int n : {0, 1, 0}) {
    const int processor = nth(before, n);
    qemu.move_vcpu_to(processor);
    placement->stand_apart();
    EXPECT_TRUE(placement->stands_apart());
    EXPECT_EQ(::sched_getcpu(), processor);
    const cpu_set_t ours = allowed(), its = allowed(qemu.pid());
    EXPECT_EQ(CPU_COUNT(&ours), 1);
    EXPECT_EQ(::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK, real_time ? SCHED_FIFO : SCHED_OTHER);
    EXPECT_FALSE(CPU_ISSET(processor, &its));
    EXPECT_EQ(CPU_COUNT(&its), CPU_COUNT(&before) - 1);
  }
  *placement = {};
  const cpu_set_t ours = allowed(), its = allowed(qemu.pid());
  EXPECT_TRUE(CPU_EQUAL(&ours, &before));
  EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
  EXPECT_TRUE(CPU_EQUAL(&its, &before));
}

TEST(Placement, WhoServesQemuGoesWithItsMainThread) {
  const cpu_set_t before = allowed();
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "needs two processors";
  const Child qemu, server;  // a thread of another process does as well as one of ours
  const int processor = nth(before, 0);
  qemu.move_vcpu_to(processor);
  std::optional<Placement> placement(std::in_place, qemu.pid(), server.pid());
  placement->stand_apart();
  EXPECT_TRUE(placement->stands_apart());
  const cpu_set_t its = allowed(server.pid()), qemus = allowed(qemu.pid());
  EXPECT_FALSE(CPU_ISSET(processor, &its));
  EXPECT_TRUE(CPU_EQUAL(&its, &qemus));
  *placement = {};
  const cpu_set_t after = allowed(server.pid());
  EXPECT_TRUE(CPU_EQUAL(&after, &before));
}

TEST(Placement, WhatAKilledDaemonLeftIsForgotten) {
  const cpu_set_t before = allowed();
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "needs two processors";
  const Child qemu;
  const int processor = nth(before, 0);
  qemu.move_vcpu_to(processor);
  qemu.let_vcpu_go(before);
  cpu_set_t left = before;
  CPU_CLR(nth(before, 1), &left);
  ASSERT_EQ(::sched_setaffinity(qemu.pid(), sizeof left, &left), 0);
  std::optional<Placement> placement(std::in_place, qemu.pid());
  placement->stand_apart();
  EXPECT_TRUE(placement->stands_apart());
  *placement = {};
  const cpu_set_t its = allowed(qemu.pid());
  EXPECT_TRUE(CPU_EQUAL(&its, &before));
}

TEST(Placement, WithOneProcessorAllStays) {
  const cpu_set_t before = allowed();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(nth(before, 0), &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  const Child qemu;
  Placement placement(qemu.pid());
  placement.stand_apart();
  EXPECT_FALSE(placement.stands_apart());
  const cpu_set_t now = allowed();
  EXPECT_TRUE(CPU_EQUAL(&now, &one));
  ASSERT_EQ(::sched_setaffinity(0, sizeof before, &before), 0);
}

TEST(Placement, AProcessThatNamesNoVcpuOrIsGoneDoesNotMatter) {
  const Child nameless("worker");
  for (const int pid : {nameless.pid(), 1 << 30}) {
    Placement placement(pid);
    placement.stand_apart();
    EXPECT_FALSE(placement.stands_apart());
  }
}

}  // namespace
}  // namespace remusd::guest::qemu
