// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/network.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "ckpt/format.h"

namespace remusd::simulate {

void Network::set_listener(HostId host, std::function<void(Connection*)> accept) {
  listeners_[host] = std::move(accept);
}

void Network::set_wake(Connection* connection, HostId side, Task wake) {
  connection->ends_[side].wake = std::move(wake);
}

void Network::connect(HostId from, Duration timeout, std::function<void(Connection*)> connected) {
  const HostId to = other(from);
  Random& random = world_.random();
  const Duration there = random.between(faults_.delay_max / 3, faults_.delay_max);
  const auto fail = [this, from, connected, timeout] {
    world_.at_host(from, timeout, [connected] { connected(nullptr); });
  };
  if (cut_[to] || cut_[from] || !world_.up(to)) return fail();
  auto made = std::make_unique<Connection>();
  made->number_ = connections_.size() + 1;
  made->ends_[from].incarnation = world_.incarnation(from);
  made->ends_[to].incarnation = world_.incarnation(to);
  Connection* connection = made.get();
  connections_.push_back(std::move(made));
  world_.note(from, "connects, connection", connection->number_);
  world_.at_host(to, there, [this, to, connection] { listeners_[to](connection); });
  world_.at_host(from, 2 * there, [connected, connection] { connected(connection); });
}

// A flipped bit in what the frame's own sum covers; or data changed before it was summed, as by bad memory:
// only the epoch's digest can tell that.
void Network::damage(ckpt::Bytes* frame) {
  Random& random = world_.random();
  ckpt::FrameHeader header;
  std::memcpy(&header, frame->data(), sizeof header);
  const bool data = header.type == static_cast<uint16_t>(ckpt::FrameType::pages) ||
                    header.type == static_cast<uint16_t>(ckpt::FrameType::device);
  if (random.per_mille(faults_.flip_per_mille)) {
    const uint64_t bit = random.below(frame->size() * 8);
    (*frame)[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ++world_.stats().corruptions;
    world_.note(kOutside, "flips bit", bit);
  } else if (data && random.per_mille(faults_.bad_sum_per_mille)) {
    const uint64_t bit = random.below((frame->size() - sizeof header) * 8);
    (*frame)[sizeof header + bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    const uint64_t none = 0;
    std::memcpy(frame->data() + offsetof(ckpt::FrameHeader, checksum), &none, sizeof none);
    const uint64_t sum = XXH3_64bits(frame->data(), frame->size());
    std::memcpy(frame->data() + offsetof(ckpt::FrameHeader, checksum), &sum, sizeof sum);
    ++world_.stats().corruptions;
    world_.note(kOutside, "changes data before it is summed, bit", bit);
  }
}

void Network::send(Connection* connection, HostId from, ckpt::View frame) {
  Connection::Segment segment;
  segment.bytes.assign(frame.begin(), frame.end());
  damage(&segment.bytes);
  const HostId to = other(from);
  Random& random = world_.random();
  if (segment.bytes.size() > 1 && random.per_mille(faults_.split_per_mille)) {
    const auto at =
        segment.bytes.begin() + static_cast<ptrdiff_t>(1 + random.below(segment.bytes.size() - 1));
    Connection::Segment first;
    first.bytes.assign(segment.bytes.begin(), at);
    segment.bytes.erase(segment.bytes.begin(), at);
    schedule(connection, to, std::move(first));
  }
  schedule(connection, to, std::move(segment));
}

void Network::schedule(Connection* connection, HostId to, Connection::Segment segment) {
  Random& random = world_.random();
  Connection::Path& path = connection->paths_[to];
  Duration delay = random.between(faults_.delay_max / 3, faults_.delay_max);
  if (random.per_mille(faults_.slow_per_mille)) delay *= 100;
  const Duration takes = faults_.per_byte * static_cast<Duration::rep>(segment.bytes.size());
  path.last_arrival = segment.arrives = std::max(path.last_arrival, world_.now() + delay) + takes;
  path.bytes += segment.bytes.size();
  path.segments.push_back(std::move(segment));
  world_.after(path.last_arrival - world_.now(), [this, connection, to] { arrive(connection, to); });
}

void Network::arrive(Connection* connection, HostId to) {
  Connection::Path& path = connection->paths_[to];
  if (connection->dead_ || cut_[to]) return;  // Stalled: cut(to, false) delivers it.
  Connection::End& end = connection->ends_[to];
  bool came = false;
  while (!path.segments.empty() && path.segments.front().arrives <= world_.now()) {
    const Connection::Segment& segment = path.segments.front();
    path.bytes -= segment.bytes.size();
    const bool nobody = end.incarnation != world_.incarnation(to) || !end.open;
    if (nobody) {
      path.segments.pop_front();
      if (world_.up(to)) return reset(connection, other(to));  // The kernel knows no such connection.
      continue;
    }
    end.inbox.insert(end.inbox.end(), segment.bytes.begin(), segment.bytes.end());
    if (segment.fin) end.closed_by_peer = true;
    path.segments.pop_front();
    came = true;
  }
  if (came && end.wake) world_.at_host(to, microseconds(5), end.wake);
}

// `side` is told that there is no such connection at the other end.
void Network::reset(Connection* connection, HostId side) {
  const auto tell = [this, connection, side] {
    Connection::End& end = connection->ends_[side];
    if (!end.open || end.closed_by_peer || cut_[side] || end.incarnation != world_.incarnation(side)) return;
    end.closed_by_peer = true;
    if (end.wake) world_.at_host(side, microseconds(5), end.wake);
  };
  world_.after(faults_.delay_max, tell);
}

void Network::close(Connection* connection, HostId side) {
  Connection::End& end = connection->ends_[side];
  if (!end.open) return;
  end.open = false;
  end.wake = nullptr;
  Connection::Segment fin;
  fin.fin = true;
  schedule(connection, other(side), std::move(fin));
}

void Network::cut(HostId to, bool cut) {
  if (cut_[to] == cut) return;
  cut_[to] = cut;
  world_.note(to, cut ? "cannot be reached" : "can be reached again");
  if (cut) {
    ++world_.stats().partitions;
    return;
  }
  for (const auto& connection : connections_) {
    if (connection->paths_[to].segments.empty()) continue;
    world_.after(faults_.delay_max, [this, to, raw = connection.get()] { arrive(raw, to); });
  }
}

void Network::reset_all() {
  ++world_.stats().resets;
  for (const auto& connection : connections_) {
    if (!connection->ends_[kA].open && !connection->ends_[kB].open) continue;
    for (Connection::Path& path : connection->paths_) path = {};
    reset(connection.get(), kA);
    reset(connection.get(), kB);
  }
}

void Network::mute_all() {
  ++world_.stats().resets;
  for (const auto& connection : connections_) connection->dead_ = true;
}

void Network::host_died(HostId host, bool kernel_lives) {
  for (const auto& connection : connections_) {
    Connection::End& end = connection->ends_[host];
    if (!end.open) continue;
    if (kernel_lives) {
      close(connection.get(), host);
    } else {
      end.open = false;
      end.wake = nullptr;
    }
  }
}

}  // namespace remusd::simulate
