// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <random>

#include "ckpt/wire.h"
#include "disk/page_pipe.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

using Bytes = std::vector<std::byte>;

constexpr size_t kFileBytes = (size_t{3} << 20) + 100, kMiB = size_t{1} << 20;

bool kernel_tells_what_is_cached() {
  constexpr long kCacheStat = 451;
  return ::syscall(kCacheStat, -1, nullptr, nullptr, 0) != 0 && errno != ENOSYS;
}

class PagePipeTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!kernel_tells_what_is_cached()) GTEST_SKIP() << "needs cachestat(2), Linux 6.5";
    std::mt19937 random(7);
    for (std::byte& byte : content_) byte = static_cast<std::byte>(random());
    file_.reset(::open((directory_.path() + "/file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::pwrite(file_.get(), content_.data(), kFileBytes, 0), static_cast<ssize_t>(kFileBytes));
    std::array<int, 2> ends{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
    ours_.reset(ends[0]);
    theirs_.reset(ends[1]);
  }

  /// Moves all of it, and tells whether the peer has received what the file has there.
  bool arrives(uint64_t offset, size_t bytes) {
    Bytes got(bytes);
    for (size_t at = 0; at < bytes;) {
      if (pipe_.bytes() > 0 && pipe_.move_to(ours_.get()) < 0 && errno != EAGAIN) return false;
      const ssize_t now = ::recv(theirs_.get(), got.data() + at, bytes - at, 0);
      if (now <= 0) return false;
      at += static_cast<size_t>(now);
    }
    return pipe_.bytes() == 0 && std::equal(got.begin(), got.end(), content_.begin() + offset);
  }

  TemporaryDirectory directory_;
  Bytes content_ = Bytes(kFileBytes);
  ScopedFd file_, ours_, theirs_;
  PagePipe pipe_;
};

TEST_F(PagePipeTest, BringsWhatIsCached) {
  for (const size_t bytes : {size_t{1}, size_t{4096}, size_t{100000}, kMiB}) {
    ASSERT_TRUE(pipe_.fill(file_.get(), 8192, bytes)) << bytes;
    EXPECT_EQ(pipe_.bytes(), bytes);
    EXPECT_TRUE(arrives(8192, bytes)) << bytes;
  }
  ASSERT_TRUE(pipe_.fill(file_.get(), 3 * kMiB, 100)) << "up to the end";
  EXPECT_TRUE(arrives(3 * kMiB, 100));
}

TEST_F(PagePipeTest, TakesNothingElse) {
  EXPECT_FALSE(pipe_.fill(file_.get(), 100, 4096)) << "does not begin with a page";
  EXPECT_FALSE(pipe_.fill(file_.get(), 0, kMiB + 1)) << "too long";
  EXPECT_FALSE(pipe_.fill(file_.get(), 3 * kMiB, 4097)) << "beyond the end";
  ASSERT_TRUE(pipe_.fill(file_.get(), 0, 4096));
  EXPECT_FALSE(pipe_.fill(file_.get(), 4096, 4096)) << "not empty";
  EXPECT_TRUE(arrives(0, 4096));
  EXPECT_TRUE(pipe_.fill(file_.get(), 4096, 4096)) << "and goes on";
}

TEST_F(PagePipeTest, TakesNothingThatADeviceMustBeAskedFor) {
  ASSERT_EQ(::ftruncate(file_.get(), 2 * kFileBytes), 0);
  EXPECT_FALSE(pipe_.fill(file_.get(), 4 * kMiB, kMiB)) << "a hole that nobody has read";
  EXPECT_TRUE(pipe_.fill(file_.get(), 0, kMiB));
}

/// The last page is cached as a whole, and the file ends within it.
TEST_F(PagePipeTest, HalfOfWhatWasAskedForIsNotPassedOn) {
  EXPECT_FALSE(pipe_.fill(file_.get(), 3 * kMiB, 200));
  EXPECT_EQ(pipe_.bytes(), 0u);
  ASSERT_TRUE(pipe_.fill(file_.get(), 0, kMiB)) << "and it goes on";
  EXPECT_TRUE(arrives(0, kMiB));
}

TEST_F(PagePipeTest, DoesNotWaitForRoomAndGoesOnWhenThereIsSome) {
  size_t held = 0;
  for (;;) {
    const bool full = pipe_.bytes() > 0 || pipe_.fill(file_.get(), 0, kMiB);
    ASSERT_TRUE(full);
    const ssize_t moved = pipe_.move_to(ours_.get());
    if (moved < 0) break;
    held += static_cast<size_t>(moved);
  }
  EXPECT_EQ(errno, EAGAIN);
  EXPECT_EQ(::fcntl(ours_.get(), F_GETFL) & O_NONBLOCK, 0) << "the socket is as it was";
  Bytes got(held);
  ASSERT_EQ(::recv(theirs_.get(), got.data(), held, MSG_WAITALL), static_cast<ssize_t>(held));
  const size_t left = pipe_.bytes();
  EXPECT_TRUE(arrives(kMiB - left, left));
}

TEST_F(PagePipeTest, APeerThatIsGoneIsToldByTheSocket) {
  const auto before = std::signal(SIGPIPE, SIG_IGN);
  theirs_.reset();
  ASSERT_TRUE(pipe_.fill(file_.get(), 0, kMiB));
  EXPECT_EQ(pipe_.move_to(ours_.get()), -1);
  EXPECT_EQ(errno, EPIPE);
  std::signal(SIGPIPE, before);
}

}  // namespace
}  // namespace remusd::disk
