// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One network card's way through the gate: QEMU's stream socket on one side (be32 length, then the frame),
// the outside on the other (one read or write per frame), and the epoch queue between them for what goes out.
//
// Nothing here blocks, and nothing grows: when the queue is full the port stops reading QEMU, whose transmit
// queue then stops the guest; when QEMU does not read, the port stops reading the outside, where the kernel
// keeps the TAP's own bounded queue. Owned by the net thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "ckpt/clock.h"
#include "netbuf/epoch_queue.h"
#include "netbuf/framing.h"
#include "netbuf/net_buffer.h"
#include "netbuf/rarp.h"

namespace remusd::netbuf {

struct PortCounters {
  uint64_t released_frames = 0, released_bytes = 0, inbound_frames = 0, inbound_bytes = 0;
  uint64_t stalls_full = 0, inbound_dropped = 0, outbound_dropped = 0, discarded_frames = 0;
};

class Port {
 public:
  Port(Nic nic, const MacAddress& mac, ScopedFd guest, size_t limit_bytes, size_t limit_frames);

  int guest_fd() const { return guest_.get(); }
  int outside_fd() const { return nic_.outside.get(); }
  /// poll() events wanted now; 0 when the descriptor must be left alone.
  short guest_events() const;
  short outside_events() const;

  /// Reads what the guest has sent. `tag` is asked after each read, never before: see net_buffer.h.
  void read_guest(const std::function<uint64_t()>& tag);
  /// Gives what has come to the guest, or to `take` instead unless it is empty.
  using Take = std::function<bool(std::span<const std::byte> frame)>;
  void read_outside(const Take& take);
  /// False when there is no room.
  bool inject(std::span<const std::byte> frame);
  /// A whole frame was read and waits for room in the queue; read_guest() tries again.
  bool stalled() const { return stalled_; }
  /// Writes released frames out until `good_until`; appends their hold times to *holds while it has fewer
  /// than `most`.
  void flush(std::vector<double>* holds, size_t most, Time good_until = Time::max());
  void write_guest();
  void announce();

  EpochQueue& queue() { return queue_; }
  const EpochQueue& queue() const { return queue_; }
  /// The hypervisor has read what was written to it. From any thread.
  bool input_read() const;
  /// Gives up what is held and carries nothing any more, either way.
  void shut();
  const PortCounters& counters() const { return counters_; }
  /// QEMU closed its side, or spoke nonsense; the port carries nothing any more.
  bool guest_gone() const { return guest_gone_; }

 private:
  void queue_frames(uint64_t tag);
  bool room_for_input() const;
  /// False when the outside would block.
  bool write_outside(std::span<const std::byte> frame);

  Nic nic_;
  MacAddress mac_;
  ScopedFd guest_;
  EpochQueue queue_;
  PortCounters counters_;
  bool guest_gone_ = false;
  bool unblocked_ = false;        // QEMU's end was, or cannot be
  bool stalled_ = false;          // a whole frame waits in from_guest_ for room in the queue
  bool outside_blocked_ = false;  // wait for POLLOUT
  std::unique_ptr<std::byte[]> from_guest_;
  size_t from_guest_size_ = 0;
  std::unique_ptr<std::byte[]> to_guest_;
  size_t to_guest_sent_ = 0;
  size_t to_guest_size_ = 0;
};

}  // namespace remusd::netbuf
