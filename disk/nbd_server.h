// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The NBD server of one guest: each of its disks on a unix socket of its own, for QEMU to connect to. One
// thread ("disk") with one io_uring does all of it.
//
// What a client may rely on:
//   * A request that was answered without an error was carried out. One that fails halfway (the local disk's
//     EIO or ENOSPC) leaves its run undefined, as on any disk.
//   * Changes that overlap are made one after the other in the order in which they came, over all
//     connections; others, and reads, in any order. Answers come in any order.
//   * A flush covers every change that was answered before it came, on whichever connection.
//   * After a flush of the local file has failed no flush and no FUA write of that disk succeeds any more.
// The disk's size is that at the start. The export is named "" and as the disk is.
//
// Bounds: kMaxConnections for each disk, kMaxRequests at once on a connection, and bytes in requests, told
// apart by those that change something and those that do not. At a bound the server stops reading the
// connection that reached it until there is room: nothing is dropped and nothing grows. Changes that the
// observer keeps waiting count against it, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/status.h"
#include "disk/change.h"
#include "disk/local_file.h"

namespace remusd::disk {

struct ServedDisk {
  std::string name;
  std::string socket_path;          // made anew with mode 0600; what lay there is removed
  const LocalFile* file = nullptr;  // outlives the server
  bool read_only = false;
};

struct ServerOptions {
  std::vector<ServedDisk> disks;
  Observer* observer = nullptr;  // outlives the server; null: nobody is told
  // Content of changes, and of the rest, at once. At least 32 MiB each: one request may have so much.
  size_t change_bytes = kMaxChangesRead, read_bytes = 64u << 20;
};

/// Of one disk since the start; the last three are as things are now.
struct DiskCounters {
  uint64_t reads = 0, read_bytes = 0;
  uint64_t writes = 0, written_bytes = 0;
  uint64_t zeroes = 0, zeroed_bytes = 0;  // trims, too
  uint64_t flushes = 0;                   // FUA writes not counted
  uint64_t errors = 0;                    // requests that were answered with one
  uint64_t in_flight = 0;                 // requests read from the socket, and not answered
  uint64_t held = 0;                      // of them, changes that the observer has no room for
  uint64_t connections = 0;
};

/// Thread-safe.
class Server {
 public:
  static constexpr size_t kMaxConnections = 16, kMaxRequests = 64;

  /// `invalid` for options that break a rule above; `unsupported` without io_uring.
  static Result<std::unique_ptr<Server>> start(ServerOptions options);
  /// Closes the connections, waits until what the observer was told of has been carried out, and removes the
  /// sockets. Changes that wait for the observer are dropped, unanswered. A device that never answers keeps
  /// this waiting.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// The observer has room again.
  void retry();
  /// Somebody else has changed the files: the next flush of each goes to the file, whatever was flushed
  /// before.
  void doubt();
  /// Waits until no change that the observer was told of is on its way to the local file; false: not by then.
  /// More may come at once, unless the observer takes no more.
  bool drain(Time deadline);

  DiskCounters counters(size_t disk) const;
  /// Its thread's number, which is the kernel's.
  int thread() const;

 private:
  class Loop;
  explicit Server(std::unique_ptr<Loop> loop);
  std::unique_ptr<Loop> loop_;
};

}  // namespace remusd::disk
