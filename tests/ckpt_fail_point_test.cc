// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <vector>

#include "ckpt/fail_point.h"

namespace remusd {
namespace {

TEST(FailPoint, NamesDiffer) {
  EXPECT_EQ(std::set<std::string_view>(kFailPoints.begin(), kFailPoints.end()).size(), kFailPoints.size());
}

#if defined(REMUSD_FAILPOINTS)

/// What `body` ends with in a process of its own, with this environment: its wait status.
template <typename Body>
int in_child(const char* points, const char* table, Body body, int options = 0) {
  const pid_t child = fork();
  if (child == 0) {
    ::setenv("REMUSD_FAIL_POINTS", points, 1);
    if (table != nullptr) ::setenv("REMUSD_FAIL_POINT_TABLE", table, 1);
    std::_Exit(body());
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, options), child);
  if (WIFSTOPPED(status)) {
    ::kill(child, SIGKILL);
    EXPECT_EQ(waitpid(child, nullptr, 0), child);
  }
  return status;
}

int pass_three_times() {
  for (int i = 0; i < 3; ++i) fail_point("primary.paused");
  return 7;
}

TEST(FailPoint, KillsAtTheChosenPassAndAtNoOther) {
  const int killed = in_child("backup.won=stop;primary.paused=kill@3", nullptr, pass_three_times);
  EXPECT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL) << killed;
  const int whole = in_child("primary.paused=kill@4", nullptr, pass_three_times);
  EXPECT_TRUE(WIFEXITED(whole) && WEXITSTATUS(whole) == 7) << whole;
}

TEST(FailPoint, StopsTheProcess) {
  const int status = in_child("primary.paused=stop", nullptr, pass_three_times, WUNTRACED);
  EXPECT_TRUE(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP) << status;
}

TEST(FailPoint, FailsForAsManyPassesAsAsked) {
  const int status = in_child("arbiter.installed=error@2-3", nullptr, [] {
    int failures = 0;
    for (int pass = 1; pass <= 4; ++pass)
      failures = failures * 2 + (fail_point_error("arbiter.installed").ok() ? 0 : 1);
    return failures;
  });
  EXPECT_EQ(WEXITSTATUS(status), 0b0110);
}

TEST(FailPoint, WrongTextEndsTheProcess) {
  for (const char* text : {"nowhere=kill", "primary.paused", "primary.paused=burn", "primary.paused=kill@x",
                           "primary.paused=kill@0", "primary.paused=error@3-2", "primary.paused=none"}) {
    const int status = in_child(text, nullptr, pass_three_times);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 2) << text << ": " << status;
  }
}

TEST(FailPoint, TableInAFileCountsPassesAndOutlivesTheProcess) {
  std::string path = testing::TempDir() + "fail-points-XXXXXX";
  const int made = ::mkstemp(path.data());
  ASSERT_GE(made, 0);
  ::close(made);
  const int status = in_child("primary.paused=kill@5", path.c_str(), pass_three_times);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  std::ifstream file(path, std::ios::binary);
  uint64_t passes = 0, first = 0;
  file.read(reinterpret_cast<char*>(&passes), sizeof passes);
  file.read(reinterpret_cast<char*>(&first), sizeof first);
  EXPECT_EQ(passes, 3u);
  EXPECT_EQ(first, 5u);
  // The count goes on: the fifth pass is the second of the next process.
  const int killed = in_child("", path.c_str(), pass_three_times);
  EXPECT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL) << killed;
  ::unlink(path.c_str());
}

#else

TEST(FailPoint, IsNothingInThisBuild) {
  ::setenv("REMUSD_FAIL_POINTS", "primary.paused=kill", 1);
  fail_point("primary.paused");
  EXPECT_TRUE(fail_point_error("primary.paused").ok());
  ::unsetenv("REMUSD_FAIL_POINTS");
}

#endif

}  // namespace
}  // namespace remusd
