// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>

#include <array>
#include <string>
#include <thread>

#include "ckpt/thread.h"

namespace remusd {
namespace {

int nice_now() {
  return ::getpriority(PRIO_PROCESS, 0);
}

TEST(Thread, AnUrgentOneComesBeforeItsProcessAndANormalOneDoesNotWhoeverMadeIt) {
  const int own = nice_now();
  ASSERT_EQ(own_nice(), own);
  std::array<char, 16> name{};
  int urgent = 0, made_by_it = 0;
  std::thread thread([&] {
    begin_thread("urgent-one", Urgency::urgent);
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    urgent = nice_now();
    std::thread other([&] {
      begin_thread("normal-one");
      made_by_it = nice_now();
    });
    other.join();
  });
  thread.join();
  EXPECT_EQ(std::string(name.data()), "urgent-one");
  EXPECT_EQ(made_by_it, own);
  if (urgent == own) GTEST_SKIP() << "raising a thread's priority needs CAP_SYS_NICE";
  EXPECT_LT(urgent, own);
}

}  // namespace
}  // namespace remusd
