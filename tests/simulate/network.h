// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Connections between the two hosts, as TCP makes them: bytes come in order or not at all; a partition, of
// one direction or both, stalls them until it heals; a connection ends by FIN after its data, by a reset that
// loses what is under way, or by nothing at all when a host dies. What an old connection still carries comes
// late and goes to nobody else. Bits may flip past TCP's checksum.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "ckpt/records.h"
#include "tests/simulate/world.h"

namespace remusd::simulate {

/// Chosen by the seed; the cluster changes them when the faults end.
struct NetworkFaults {
  Duration delay_max = microseconds(300);  // one way; at least a third of it
  Duration per_byte{};                     // of a link that trickles
  uint32_t slow_per_mille = 0;             // of segments, which take 100 times as long
  uint32_t split_per_mille = 0;            // of segments that come in two pieces
  uint32_t flip_per_mille = 0;             // of frames that have one bit flipped
  uint32_t bad_sum_per_mille = 0;          // of data frames changed before they were summed
};

class Connection {
 public:
  bool open(HostId side) const { return ends_[side].open; }
  bool peer_closed(HostId side) const { return ends_[side].closed_by_peer; }
  /// Bytes that `side` has sent and that have not arrived.
  size_t queued(HostId side) const { return paths_[other(side)].bytes; }
  ckpt::Bytes& inbox(HostId side) { return ends_[side].inbox; }

 private:
  friend class Network;
  struct Segment {
    ckpt::Bytes bytes;
    bool fin = false;
    Time arrives;
  };
  struct Path {  // by receiver
    std::deque<Segment> segments;
    size_t bytes = 0;
    Time last_arrival{};
  };
  struct End {
    bool open = true;
    bool closed_by_peer = false;
    uint32_t incarnation = 0;
    ckpt::Bytes inbox;
    Task wake;
  };
  uint64_t number_ = 0;
  std::array<Path, kHosts> paths_;
  std::array<End, kHosts> ends_;
  bool dead_ = false;  // nothing gets through any more, and nobody is told
};

class Network {
 public:
  explicit Network(World& world) : world_(world) {}

  NetworkFaults& faults() { return faults_; }

  /// `connected` runs on `from` with null when there is no way within `timeout`. Who listens on the other
  /// host is told by `accept`, which set_listener() gave.
  void connect(HostId from, Duration timeout, std::function<void(Connection*)> connected);
  void set_listener(HostId host, std::function<void(Connection*)> accept);
  /// Called on the host when something came, also the end of the connection.
  void set_wake(Connection* connection, HostId side, Task wake);

  /// One frame; never refused: the caller looks at queued() first.
  void send(Connection* connection, HostId from, ckpt::View frame);
  void close(Connection* connection, HostId side);

  // Faults.
  void cut(HostId to, bool cut);  // the direction that ends at `to`
  bool is_cut(HostId to) const { return cut_[to]; }
  void reset_all();  // a box between the hosts ends what there is
  void mute_all();   // or forgets it
  /// The host's ends go without a word; `kernel_lives`: its kernel closes them.
  void host_died(HostId host, bool kernel_lives);

 private:
  void schedule(Connection* connection, HostId to, Connection::Segment segment);
  void arrive(Connection* connection, HostId to);
  void reset(Connection* connection, HostId side);
  void damage(ckpt::Bytes* frame);

  World& world_;
  NetworkFaults faults_;
  std::array<bool, kHosts> cut_{};
  std::array<std::function<void(Connection*)>, kHosts> listeners_;
  std::vector<std::unique_ptr<Connection>> connections_;
};

}  // namespace remusd::simulate
