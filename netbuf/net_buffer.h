// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The gates: one thread ("net") per guest that carries frames between QEMU's stream netdev sockets and the
// outside (TAPs), holding what goes out until its epoch is acknowledged. Inbound frames pass straight on.
//
// How frames get their epoch without a lock in the pause: seal(k) only advances an atomic. The net thread
// reads a frame, *then* loads the open epoch as its tag. The epoch is advanced only while the guest is
// stopped, so a tag may be too late by one, never too early.
//
// Threads: seal() from the epoch thread; everything else from any thread. seal and release are wait-free but
// for an eventfd write in release.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"

namespace remusd::netbuf {

struct Nic {
  std::string id;
  std::string mac;
  std::string socket_path;  // QEMU's listening stream socket
  ScopedFd outside;         // TAP, or a SEQPACKET socket in tests: one read/write is one Ethernet frame
};

struct NetOptions {
  size_t limit_bytes = 64u << 20;  // held, per guest (shared evenly by its NICs)
  size_t limit_frames = 65536;
};

struct NetStats {
  uint64_t held_bytes = 0, held_frames = 0;
  uint64_t released_frames = 0, released_bytes = 0, inbound_frames = 0, inbound_bytes = 0;
  uint64_t stalls_full = 0;  // times reading the guest stopped because the bound was reached
  uint64_t inbound_dropped = 0,
           outbound_dropped = 0;  // told apart from silence: why is in the log line and metric help
  uint64_t discarded_frames = 0;  // held when the right to speak was lost
  std::vector<double>
      hold_seconds;  // hold times of frames released since the last stats() call, at most 4096
};

class NetBuffer {
 public:
  /// Connects to each NIC's socket and starts the thread, passing or holding. An empty list is allowed.
  static Result<std::unique_ptr<NetBuffer>> start(std::vector<Nic> nics, const NetOptions& options,
                                                  const std::string& vm, bool holding);
  ~NetBuffer();

  /// Begins a session: holds from now on; REQUIRES: passing. Frames read from here on belong to `open_epoch`.
  /// Call it while the guest is paused, or before it is protected.
  void hold(uint64_t open_epoch);
  /// The guest is paused at the end of `epoch`: what comes after belongs to epoch + 1. epoch must rise by
  /// one.
  void seal(uint64_t epoch);
  /// `epoch` was acknowledged. REQUIRES: epoch < the open epoch (asserted). What has not left by
  /// `good_until`, because this process stood still, waits for the next call: the acknowledgement is too old
  /// then.
  void release_through(uint64_t epoch, Time good_until = Time::max());
  /// The right to run alone was won: everything held leaves, and frames pass from now on.
  void pass();
  /// The right to run was lost: what was released before, and is good still, leaves; what is held is dropped,
  /// and the gate is closed for good.
  void shut();

  /// Takes a frame that came from outside for the guest's card `card`, on the net thread; false: it is
  /// dropped. Must not block.
  using TakeInput = std::function<bool(size_t card, std::span<const std::byte> frame)>;
  /// The guest is about to stand for good: from now on `take` gets what comes for it; null: the guest again.
  /// When this returns nothing is given to the guest any more and an earlier `take` is not called any more.
  void divert(TakeInput take);
  /// The hypervisor has read all that it was given.
  bool input_drained() const;
  /// Gives the guest a frame that came for it elsewhere. False when it is dropped: no such card, or no room.
  bool inject(size_t card, std::span<const std::byte> frame);
  /// So many frames for the guest were dropped on their way to inject(); they count in inbound_dropped.
  void count_dropped_input(uint64_t frames);

  /// From now on `waits` is called, on the net thread, once for each epoch for which output is held, as soon
  /// as there is some; null: no more. It must not block. When this returns an earlier one is not called any
  /// more.
  void watch_output(std::function<void(uint64_t epoch)> waits);

  /// Sends reverse-ARP broadcasts for each NIC's MAC to the outside, now and a few more times.
  void announce();

  NetStats stats();

 private:
  class Pump;
  explicit NetBuffer(std::unique_ptr<Pump> pump);
  std::unique_ptr<Pump> pump_;
};

/// Creates (or opens) a TAP without packet information, up, non-blocking, and puts it on `bridge` when that
/// is not empty. It goes away with the descriptor.
Result<ScopedFd> open_tap(const std::string& name, const std::string& bridge);

}  // namespace remusd::netbuf
