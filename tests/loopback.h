// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Connections on this host for tests.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <string>
#include <utility>

#include "ckpt/scoped_fd.h"

namespace remusd {

/// Listens on a free TCP port of the loopback.
struct Listener {
  Listener() : socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof any;
    auto* generic = reinterpret_cast<sockaddr*>(&any);
    EXPECT_EQ(::bind(socket.get(), generic, size), 0);
    EXPECT_EQ(::listen(socket.get(), 8), 0);
    EXPECT_EQ(::getsockname(socket.get(), generic, &size), 0);
    port = ntohs(any.sin_port);
    address = "127.0.0.1:" + std::to_string(port);
  }
  ScopedFd accept() const { return ScopedFd(::accept4(socket.get(), nullptr, nullptr, SOCK_CLOEXEC)); }

  ScopedFd socket;
  uint16_t port = 0;
  std::string address;  // as ckpt::connect_to() takes it
};

/// Two ends of a TCP connection.
inline std::pair<ScopedFd, ScopedFd> tcp_pair() {
  const Listener listener;
  ScopedFd near(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in there{};
  there.sin_family = AF_INET;
  there.sin_port = htons(listener.port);
  there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(near.get(), reinterpret_cast<const sockaddr*>(&there), sizeof there), 0);
  return {std::move(near), listener.accept()};
}

inline std::pair<ScopedFd, ScopedFd> unix_pair() {
  int ends[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  return {ScopedFd(ends[0]), ScopedFd(ends[1])};
}

}  // namespace remusd
