// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "ckpt/scoped_fd.h"
#include "netbuf/unblock.h"

namespace remusd::netbuf {
namespace {

/// A process that accepts one connection and then writes as much as goes through.
TEST(Unblock, ThePeersNextWriteFailsInsteadOfWaiting) {
  std::string folder = testing::TempDir() + "unblock-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const std::string path = folder + "/socket";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);  // A write that waits for ever fails the test.
    const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (::bind(listener, name, sizeof address) != 0 || ::listen(listener, 1) != 0) std::_Exit(1);
    ::raise(SIGSTOP);
    const int socket = ::accept(listener, nullptr, nullptr);
    ::raise(SIGSTOP);
    std::array<char, 4096> bytes{};
    while (::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL) > 0) {
    }
    std::_Exit(errno == EAGAIN ? 7 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  const ScopedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(socket.get(), name, sizeof address), 0);
  EXPECT_EQ(unblock_peer(socket.get(), path).code(), Code::unavailable) << "not accepted yet";
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  const Status done = unblock_peer(socket.get(), path);
  EXPECT_TRUE(done.ok()) << done.message();
  ::kill(child, SIGCONT);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7) << status;
  ::unlink(path.c_str());
  ::rmdir(folder.c_str());
}

TEST(Unblock, WhatIsNoSocketOfAnotherProcessIsRefused) {
  EXPECT_EQ(unblock_peer(0, "/tmp/x").code(), Code::invalid);
  std::array<int, 2> pair{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
  EXPECT_TRUE(unblock_peer(pair[0], "/tmp/x").ok()) << "our own: nobody else would wait";
  ::close(pair[0]);
  ::close(pair[1]);
}

}  // namespace
}  // namespace remusd::netbuf
