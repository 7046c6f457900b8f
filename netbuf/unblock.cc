// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "netbuf/unblock.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "ckpt/scoped_fd.h"

namespace remusd::netbuf {
namespace {

bool is_accepted_at(int socket, const std::string& path) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return false;
  if (address.sun_family != AF_UNIX || path != address.sun_path) return false;
  int listens = 1;
  socklen_t length = sizeof listens;
  return ::getsockopt(socket, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens == 0;
}

}  // namespace

Status unblock_peer(int socket, const std::string& path) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (path.size() >= sizeof(sockaddr_un::sun_path) ||
      ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) {
    return {Code::invalid, "'" + path + "' is no unix socket of another process"};
  }
  if (peer.pid == ::getpid()) return {};
  const ScopedFd process(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!process) return Status::from_errno("open process " + std::to_string(peer.pid));
  bool found = false;
  std::error_code error;
  const std::string folder = "/proc/" + std::to_string(peer.pid) + "/fd";
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::error_code gone;
    if (!std::filesystem::read_symlink(entry.path(), gone).string().starts_with("socket:")) continue;
    const int number = std::atoi(entry.path().filename().c_str());
    const ScopedFd copy(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
    if (!copy) {
      if (errno == EBADF) continue;  // Closed meanwhile.
      return Status::from_errno("copy a socket of process " + std::to_string(peer.pid));
    }
    if (!is_accepted_at(copy.get(), path)) continue;
    const int flags = ::fcntl(copy.get(), F_GETFL);
    if (flags < 0 || ::fcntl(copy.get(), F_SETFL, flags | O_NONBLOCK) != 0)
      return Status::from_errno("make '" + path + "' non-blocking");
    found = true;
  }
  if (error) return Status::from_errno("list " + folder, error.value());
  if (found) return {};
  return {Code::unavailable, "process " + std::to_string(peer.pid) + " has not accepted at '" + path + "'"};
}

}  // namespace remusd::netbuf
