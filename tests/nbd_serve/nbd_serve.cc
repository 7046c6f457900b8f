// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
//   nbd_serve PATH SOCKET [--read-only] [PATH SOCKET [--read-only]]...
//
// Serves each file or block device on its socket, as the daemon does for a guest, until it gets SIGTERM or
// SIGINT; nobody is told of changes. Says "ready" on its output once all of them can be connected to. Exports
// are named disk0, disk1, and so on, and "". For tests, other programs' clients, and measurements.
#include <csignal>
#include <cstdio>
#include <list>
#include <string>

#include "disk/nbd_server.h"

int main(int count, char** words) {
  using namespace remusd;
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &ends, nullptr);

  std::list<disk::LocalFile> files;
  disk::ServerOptions options;
  for (int i = 1; i < count;) {
    if (i + 1 >= count) {
      std::fprintf(stderr, "nbd_serve: usage: nbd_serve {PATH SOCKET [--read-only]}...\n");
      return 2;
    }
    disk::ServedDisk served;
    const std::string path = words[i++];
    served.name = "disk" + std::to_string(files.size());
    served.socket_path = words[i++];
    served.read_only = i < count && std::string(words[i]) == "--read-only";
    if (served.read_only) ++i;
    auto file = disk::LocalFile::open(path, served.read_only);
    if (!file.ok()) {
      std::fprintf(stderr, "nbd_serve: %s\n", file.status().message().c_str());
      return 1;
    }
    served.file = &files.emplace_back(*std::move(file));
    options.disks.push_back(std::move(served));
  }
  auto server = disk::Server::start(std::move(options));
  if (!server.ok()) {
    std::fprintf(stderr, "nbd_serve: %s\n", server.status().message().c_str());
    return 1;
  }
  std::puts("ready");
  std::fflush(stdout);
  int number = 0;
  ::sigwait(&ends, &number);
  return 0;
}
