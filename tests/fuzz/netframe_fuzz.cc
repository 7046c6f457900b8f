// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Frames in QEMU's stream, and the queue that holds them until their epoch is acknowledged. A byte for the
// room in the queue, and a byte for when and how far is released; then the stream.
#include <deque>

#include "netbuf/epoch_queue.h"
#include "netbuf/framing.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using netbuf::Framing;

constexpr size_t kLimitBytes = 128;  // frames that would never have room are left out

uint64_t be32(View bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

struct Held {
  uint64_t epoch;
  View frame;
};

/// Everything that may leave leaves, and is what came.
void flush(netbuf::EpochQueue* queue, uint64_t released, std::deque<Held>* held) {
  while (const auto* frame = queue->front_released()) {
    REMUSD_ASSERT(
        !held->empty() && same(frame->bytes, held->front().frame) && frame->epoch == held->front().epoch,
        "what leaves is what came, in order");
    REMUSD_ASSERT(frame->epoch <= released, "what is not released stays");
    queue->pop();
    held->pop_front();
  }
  REMUSD_ASSERT(held->empty() || held->front().epoch > released, "what is released leaves");
  REMUSD_ASSERT(queue->frames() == held->size(), "the rest is held");
}

void run(View bytes) {
  Input input(bytes);
  const size_t limit_frames = 1 + input.number() % 8;
  const uint64_t every = 1 + input.number() % 8;  // so many frames are an epoch, and its number is released
  netbuf::EpochQueue queue(kLimitBytes, limit_frames);
  queue.set_passing(false);
  std::deque<Held> held;
  uint64_t epoch = 1, released = 0, frames = 0;
  const Time now{};
  for (View stream = input.rest();;) {
    View frame;
    const Framing found = netbuf::next_frame(stream, &frame);
    if (found != Framing::whole) {
      REMUSD_ASSERT(frame.data() == nullptr, "no frame, no view");
      const bool corrupt = stream.size() >= 4 && be32(stream) > netbuf::kMaxFrameBytes;
      REMUSD_ASSERT((found == Framing::corrupt) == corrupt, "only nonsense ends it");
      REMUSD_ASSERT(corrupt || stream.size() < 4 || be32(stream) > stream.size() - 4, "more has to come");
      break;
    }
    REMUSD_ASSERT(frame.size() == be32(stream) && frame.data() == stream.data() + 4,
                  "a frame is where its length says");
    std::byte length[netbuf::kLengthBytes];
    netbuf::put_length(frame.size(), length);
    REMUSD_ASSERT(same(length, stream.first(4)), "a length is written as it was read");
    stream = stream.subspan(4 + frame.size());
    if (frame.empty() || frame.size() > kLimitBytes) continue;
    if (!queue.push(epoch, now, frame)) {
      REMUSD_ASSERT(queue.frames() == limit_frames || queue.bytes() + frame.size() > kLimitBytes,
                    "what has room is taken");
      released = epoch;
      queue.release_through(released);
      flush(&queue, released, &held);
      REMUSD_ASSERT(queue.push(++epoch, now, frame), "there is room for each frame by itself");
    }
    held.push_back({epoch, frame});
    REMUSD_ASSERT(queue.frames() <= limit_frames && queue.bytes() <= kLimitBytes, "the queue is bounded");
    if (++frames % every != 0) continue;
    ++epoch;
    if (frames % 3 != 0) continue;
    released = std::max(released, epoch - 2);
    queue.release_through(released);
    flush(&queue, released, &held);
  }
  queue.set_passing(true);
  flush(&queue, UINT64_MAX, &held);
}

void seeds(Seeds* out) {
  Bytes input{std::byte{3}, std::byte{2}};
  for (const size_t size : {60, 0, 100, 61, 20, 1, 2, 3, 4, 5}) {
    std::byte length[netbuf::kLengthBytes];
    netbuf::put_length(size, length);
    input.insert(input.end(), std::begin(length), std::end(length));
    input.insert(input.end(), size, static_cast<std::byte>(size));
    out->add(input);
  }
  input.insert(input.end(), 8, std::byte{0xff});
  out->add(input);
}

REMUSD_FUZZ_TARGET(netframe, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
