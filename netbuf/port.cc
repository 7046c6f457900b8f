// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "netbuf/port.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "netbuf/unblock.h"

namespace remusd::netbuf {
namespace {

constexpr size_t kBufferBytes = 4 * (kLengthBytes + kMaxFrameBytes);

bool would_block(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

}  // namespace

Port::Port(Nic nic, const MacAddress& mac, ScopedFd guest, size_t limit_bytes, size_t limit_frames)
    : nic_(std::move(nic)),
      mac_(mac),
      guest_(std::move(guest)),
      queue_(limit_bytes, limit_frames),
      // Not zeroed: most cards never fill them.
      from_guest_(new std::byte[kBufferBytes]),
      to_guest_(new std::byte[kBufferBytes]) {}

short Port::guest_events() const {
  if (guest_gone_) return 0;
  const int read = stalled_ ? 0 : POLLIN;
  const int write = to_guest_size_ > to_guest_sent_ ? POLLOUT : 0;
  return static_cast<short>(read | write);
}

short Port::outside_events() const {
  return static_cast<short>((room_for_input() ? POLLIN : 0) | (outside_blocked_ ? POLLOUT : 0));
}

void Port::read_guest(const std::function<uint64_t()>& tag) {
  // Frames that waited for room were read before now, so the newest tag covers them.
  if (stalled_) queue_frames(tag());
  while (!guest_gone_ && !stalled_ && from_guest_size_ < kBufferBytes) {
    const size_t room = kBufferBytes - from_guest_size_;
    const ssize_t got = ::recv(guest_.get(), from_guest_.get() + from_guest_size_, room, MSG_DONTWAIT);
    if (got < 0 && would_block(errno)) break;
    if (got <= 0) {
      guest_gone_ = true;
      break;
    }
    from_guest_size_ += static_cast<size_t>(got);
    // It speaks, so it has accepted. Best effort: what has no right to trace QEMU may stall it at the bound.
    if (!std::exchange(unblocked_, true)) (void)unblock_peer(guest_.get(), nic_.socket_path);
    queue_frames(tag());
    if (static_cast<size_t>(got) < room) break;  // drained; poll() tells of more
  }
}

void Port::queue_frames(uint64_t tag) {
  const Time now = Clock::now();
  size_t at = 0;
  const bool was_stalled = std::exchange(stalled_, false);
  for (;;) {
    std::span<const std::byte> frame;
    const Framing found = next_frame({from_guest_.get() + at, from_guest_size_ - at}, &frame);
    guest_gone_ = guest_gone_ || found == Framing::corrupt;
    if (found != Framing::whole) break;
    if (!frame.empty() && !queue_.push(tag, now, frame)) {
      stalled_ = true;
      if (!was_stalled) ++counters_.stalls_full;
      break;
    }
    at += kLengthBytes + frame.size();
  }
  std::memmove(from_guest_.get(), from_guest_.get() + at, from_guest_size_ - at);
  from_guest_size_ -= at;
}

bool Port::room_for_input() const {
  return !guest_gone_ && to_guest_size_ + kLengthBytes + kMaxFrameBytes <= kBufferBytes;
}

void Port::read_outside(const Take& take) {
  while (room_for_input()) {
    std::byte* const at = to_guest_.get() + to_guest_size_;
    const ssize_t got = ::read(nic_.outside.get(), at + kLengthBytes, kMaxFrameBytes);
    if (got <= 0) break;  // nothing now, or the interface is down: poll() tells when that changes
    if (take) {
      if (!take({at + kLengthBytes, static_cast<size_t>(got)})) ++counters_.inbound_dropped;
      continue;
    }
    put_length(static_cast<size_t>(got), at);
    to_guest_size_ += kLengthBytes + static_cast<size_t>(got);
    ++counters_.inbound_frames;
    counters_.inbound_bytes += static_cast<uint64_t>(got);
  }
  write_guest();
}

bool Port::inject(std::span<const std::byte> frame) {
  if (!room_for_input() || frame.empty() || frame.size() > kMaxFrameBytes) {
    ++counters_.inbound_dropped;
    return false;
  }
  std::byte* const at = to_guest_.get() + to_guest_size_;
  put_length(frame.size(), at);
  std::copy(frame.begin(), frame.end(), at + kLengthBytes);
  to_guest_size_ += kLengthBytes + frame.size();
  ++counters_.inbound_frames;
  counters_.inbound_bytes += frame.size();
  write_guest();
  return true;
}

void Port::write_guest() {
  while (!guest_gone_ && to_guest_sent_ < to_guest_size_) {
    const ssize_t sent = ::send(guest_.get(), to_guest_.get() + to_guest_sent_,
                                to_guest_size_ - to_guest_sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && would_block(errno)) return;
    if (sent <= 0) {
      guest_gone_ = true;
      return;
    }
    to_guest_sent_ += static_cast<size_t>(sent);
  }
  to_guest_sent_ = 0;
  to_guest_size_ = 0;
}

bool Port::write_outside(std::span<const std::byte> frame) {
  const ssize_t sent = ::write(nic_.outside.get(), frame.data(), frame.size());
  if (sent < 0 && would_block(errno)) return false;
  if (sent < 0) {
    ++counters_.outbound_dropped;  // the interface is down or refuses the frame: as on a wire, it is lost
  } else {
    ++counters_.released_frames;
    counters_.released_bytes += frame.size();
  }
  return true;
}

void Port::flush(std::vector<double>* holds, size_t most, Time good_until) {
  outside_blocked_ = false;
  while (const EpochQueue::Frame* frame = queue_.front_released()) {
    const Time now = Clock::now();  // for each: we may stand still between two of them
    if (now > good_until) break;
    if (!write_outside(frame->bytes)) {
      outside_blocked_ = true;
      break;
    }
    if (holds->size() < most) holds->push_back(to_seconds(now - frame->arrived));
    queue_.pop();
  }
}

bool Port::input_read() const {
  int unread = 0;
  return ::ioctl(guest_.get(), SIOCOUTQ, &unread) != 0 || unread == 0;
}

void Port::announce() {
  if (guest_gone_) return;
  const auto frame = make_rarp_announcement(mac_);
  write_outside(frame);
}

void Port::shut() {
  counters_.discarded_frames += queue_.discard();
  guest_gone_ = true;
}

}  // namespace remusd::netbuf
