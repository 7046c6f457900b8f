// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// QEMU's side of a network card: be32 length, then the frame. What leaves must be what came, frame by frame
// and in order, and only what was released. Two bytes choose the room in the queue and how far is released;
// then chunks, each read by itself.
#include <deque>

#include "netbuf/port.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

constexpr size_t kLimitBytes = netbuf::kMaxFrameBytes;  // less would stop a guest with such frames for ever
constexpr size_t kMostChunks = 12;

uint32_t be32(View bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | std::to_integer<uint32_t>(bytes[i]);
  return value;
}

/// The frames in `stream`, and whether it can be trusted to its end.
std::deque<View> frames_in(View stream, bool* trusted) {
  std::deque<View> frames;
  *trusted = true;
  while (stream.size() >= 4) {
    const size_t size = be32(stream);
    if (size > netbuf::kMaxFrameBytes) {
      *trusted = false;
      break;
    }
    if (stream.size() - 4 < size) break;
    if (size > 0) frames.push_back(stream.subspan(4, size));
    stream = stream.subspan(4 + size);
  }
  return frames;
}

void expect_out(int outside, std::deque<View>* due) {
  static Bytes buffer(netbuf::kMaxFrameBytes);
  for (;;) {
    const ssize_t got = ::recv(outside, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (got <= 0) return;
    REMUSD_ASSERT(!due->empty() && same(View(buffer).first(static_cast<size_t>(got)), due->front()),
                  "what leaves is what came, in order");
    due->pop_front();
  }
}

void run(View bytes) {
  Input input(bytes);
  const size_t limit_frames = 1 + input.number() % 8;
  const uint64_t released = input.number() % 8;
  Bytes stream;  // what QEMU has said so far
  std::vector<View> chunks;
  while (!input.empty() && chunks.size() < kMostChunks) {
    chunks.push_back(input.chunk());
    stream.insert(stream.end(), chunks.back().begin(), chunks.back().end());
  }
  bool trusted = true;
  std::deque<View> due = frames_in(stream, &trusted);

  auto [guest, qemu] = socket_pair();
  auto [tap, world] = socket_pair(SOCK_SEQPACKET);
  netbuf::Port port(netbuf::Nic{"net0", "52:54:00:00:00:01", "", std::move(tap)}, {}, std::move(guest),
                    kLimitBytes, limit_frames);
  port.queue().set_passing(false);
  uint64_t epoch = 0;
  std::vector<double> holds;
  for (const View chunk : chunks) {
    ++epoch;
    for (View left = chunk; !left.empty();) {
      const ssize_t sent = ::send(qemu.get(), left.data(), left.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent <= 0) return;  // a stalled port reads nothing
      left = left.subspan(static_cast<size_t>(sent));
    }
    port.read_guest([&] { return epoch; });
    REMUSD_ASSERT(port.queue().frames() <= limit_frames, "the queue is bounded");
    REMUSD_ASSERT(port.queue().bytes() <= kLimitBytes, "in bytes, too");
    if (epoch <= released) {
      port.queue().release_through(epoch);
      port.flush(&holds, 4);
    }
    const size_t before = due.size();
    expect_out(world.get(), &due);
    REMUSD_ASSERT(epoch <= released || due.size() == before, "what is not released stays");
    REMUSD_ASSERT(!port.guest_gone() || !trusted, "only nonsense ends it");
  }
  // Everything may leave: nothing that came whole before any nonsense is lost.
  port.queue().set_passing(true);
  for (size_t round = 0; round <= stream.size() / 5 + 1; ++round) {
    port.flush(&holds, 4);
    expect_out(world.get(), &due);
    if (!port.stalled() && port.queue().frames() == 0) break;
    port.read_guest([&] { return epoch; });
  }
  REMUSD_ASSERT(due.empty() || port.guest_gone(), "all of it has left");
}

void seeds(Seeds* out) {
  const auto frame = [](size_t size) {
    Bytes bytes(4 + size, static_cast<std::byte>(size));
    for (size_t i = 0; i < 4; ++i) bytes[i] = static_cast<std::byte>(size >> (24 - 8 * i) & 0xff);
    return bytes;
  };
  Bytes input{std::byte{3}, std::byte{2}}, two = frame(60);
  const Bytes more = frame(100);
  two.insert(two.end(), more.begin(), more.end());
  put_chunk(frame(60), &input);
  put_chunk(View(two).first(70), &input);
  put_chunk(View(two).subspan(70), &input);
  out->add(input);
  put_chunk(frame(0), &input);
  put_chunk(frame(299), &input);
  put_chunk(frame(500), &input);
  out->add(input);
  put_chunk(Bytes(8, std::byte{0xff}), &input);
  out->add(input);
}

REMUSD_FUZZ_TARGET(port, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
