// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "ckpt/link.h"

namespace remusd::ckpt {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";

struct HostPort {
  std::string host, port;
};

Result<HostPort> parse(const std::string& address) {
  const Status wrong(Code::invalid,
                     "address '" + address + "' is not of the form host:port, [ipv6]:port or unix:/path");
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return wrong;
  HostPort parsed{address.substr(0, colon), address.substr(colon + 1)};
  if (parsed.host.front() == '[') {
    if (parsed.host.size() < 3 || parsed.host.back() != ']') return wrong;
    parsed.host = parsed.host.substr(1, parsed.host.size() - 2);
  } else if (parsed.host.find(':') != std::string::npos) {
    return wrong;  // an IPv6 address without brackets: which colon is the port's?
  }
  if (parsed.port.empty() || parsed.port.size() > 5 ||
      !std::all_of(parsed.port.begin(), parsed.port.end(), [](char c) { return c >= '0' && c <= '9'; }) ||
      std::stoi(parsed.port) < 1 || std::stoi(parsed.port) > 65535)
    return wrong;
  return parsed;
}

Status unreachable(const std::string& address, int error) {
  const Status status = Status::from_errno("connect to " + address, error);
  return {status.code() == Code::denied ? Code::denied : Code::unavailable, status.message()};
}

/// Connects one address; the socket that comes back blocks again.
Result<ScopedFd> connect_one(const std::string& address, const sockaddr* target, socklen_t target_size,
                             Time deadline) {
  ScopedFd socket(::socket(target->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return unreachable(address, errno);
  int error = ::connect(socket.get(), target, target_size) == 0 ? 0 : errno;
  while (error == EINPROGRESS || error == EINTR) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd waiting{socket.get(), POLLOUT, 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30)));
    if (ready == 0) return Status(Code::timed_out, "connect to " + address + ": no answer in time");
    if (ready < 0) {
      if (errno == EINTR) continue;
      return unreachable(address, errno);
    }
    socklen_t size = sizeof error;
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) < 0) error = errno;
  }
  if (error != 0) return unreachable(address, error);
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK) < 0)
    return unreachable(address, errno);
  return socket;
}

}  // namespace

Result<ScopedFd> connect_to(const std::string& address, Duration timeout) {
  const Time deadline = Clock::now() + std::min<Duration>(timeout, std::chrono::hours(24));
  if (address.starts_with(kUnixPrefix)) {
    const std::string path = address.substr(kUnixPrefix.size());
    sockaddr_un target{};
    if (path.empty() || path.size() >= sizeof target.sun_path)
      return Status(Code::invalid, "address '" + address + "': the path must have 1 to " +
                                       std::to_string(sizeof target.sun_path - 1) + " characters");
    target.sun_family = AF_UNIX;
    std::memcpy(target.sun_path, path.data(), path.size());
    return connect_one(address, reinterpret_cast<const sockaddr*>(&target), sizeof target, deadline);
  }

  REMUSD_ASSIGN(const HostPort parsed, parse(address));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  // The resolver has timeouts of its own, which this call cannot shorten.
  if (const int error = ::getaddrinfo(parsed.host.c_str(), parsed.port.c_str(), &hints, &found); error != 0) {
    if (error == EAI_SYSTEM) return unreachable(address, errno);
    return Status(error == EAI_NONAME ? Code::not_found : Code::unavailable,
                  "look up " + parsed.host + ": " + ::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  Status last(Code::unavailable, "look up " + parsed.host + ": no address");
  for (const addrinfo* next = found; next != nullptr; next = next->ai_next) {
    Result<ScopedFd> socket = connect_one(address, next->ai_addr, next->ai_addrlen, deadline);
    if (socket.ok()) return socket;
    last = socket.status();
  }
  return last;
}

}  // namespace remusd::ckpt
