// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What only the file arbiter has: a lock, a directory. The rest is in arbiter_contract_test.cc.
#include <fcntl.h>
#include <gtest/gtest.h>

#include "arbiter/arbiter.h"
#include "ckpt/scoped_fd.h"
#include "tests/temporary_directory.h"

namespace remusd::arbiter {
namespace {

TEST(FileArbiterTest, ALockHeldBeyondTheDeadlineIsUnknownNotLost) {
  const TemporaryDirectory directory;
  const auto arbiter = *open_file_arbiter(directory.path());
  const ScopedFd lock(::open((directory.path() + "/vm1.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  struct flock request {};
  request.l_type = F_WRLCK;
  request.l_whence = SEEK_SET;
  ASSERT_EQ(::fcntl(lock.get(), F_OFD_SETLK, &request), 0);
  const Time deadline = Clock::now() + std::chrono::milliseconds(50);
  const Answer answer = arbiter->compare_and_swap("vm1", 0, {1, "a", "", 0, "n", ""}, deadline);
  EXPECT_EQ(answer.verdict, Verdict::unknown);
  EXPECT_EQ(answer.why.code(), Code::timed_out);
  EXPECT_EQ(arbiter->read("vm1", Clock::now()).status().code(), Code::timed_out);
}

TEST(FileArbiterTest, APathThatIsNoDirectoryIsRefused) {
  EXPECT_EQ(open_file_arbiter("relative").status().code(), Code::invalid);
  EXPECT_EQ(open_file_arbiter("/dev/null").status().code(), Code::invalid);
  EXPECT_EQ(open_file_arbiter("/nonexistent/deeper").status().code(), Code::not_found);
}

}  // namespace
}  // namespace remusd::arbiter
