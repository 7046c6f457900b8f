// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Bytes to frames. The first byte says whether the checksums and numbers of what follows are put right, since
// nobody guesses a checksum; the second is the generation asked for.
#include "ckpt/frame.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using ckpt::FrameHeader;
using ckpt::FrameReader;
using ckpt::FrameView;
using ckpt::FrameWriter;

struct Outcome {
  std::vector<std::pair<FrameHeader, Bytes>> frames;
  Status status;
  size_t consumed = 0;
};

/// Reads all of `stream`; where `drip`, a few bytes more each time.
Outcome read_all(View stream, uint64_t generation, bool drip) {
  Outcome out;
  FrameReader reader;
  reader.set_generation(generation);
  size_t here = drip ? 0 : stream.size();
  size_t step = 1;
  for (;;) {
    FrameView frame;
    size_t consumed = 0;
    const View bytes = stream.subspan(out.consumed, here - out.consumed);
    out.status = reader.next(bytes, &frame, &consumed);
    REMUSD_ASSERT(consumed <= bytes.size(), "no more is taken than there is");
    if (!out.status.ok()) {
      require_reason(out.status);
      REMUSD_ASSERT(consumed == 0, "a refused frame is not taken");
      FrameView later;
      const Status again = reader.next(stream, &later, &consumed);
      REMUSD_ASSERT(again.message() == out.status.message() && consumed == 0, "a failure is final");
      return out;
    }
    if (consumed == 0) {
      REMUSD_ASSERT(frame.header.magic == 0 && frame.body.empty(), "no frame, no view");
      if (here == stream.size()) return out;
      here += std::min(step++, stream.size() - here);
      continue;
    }
    REMUSD_ASSERT(consumed == sizeof(FrameHeader) + frame.body.size(), "header and body, nothing else");
    REMUSD_ASSERT(frame.body.size() == frame.header.body_bytes, "the body is as long as said");
    REMUSD_ASSERT(frame.body.data() >= bytes.data() &&
                      frame.body.data() + frame.body.size() <= bytes.data() + bytes.size(),
                  "the body lies in the buffer");
    REMUSD_ASSERT(frame.header.generation >= generation, "the generation never falls");
    generation = frame.header.generation;
    out.frames.emplace_back(frame.header, Bytes(frame.body.begin(), frame.body.end()));
    out.consumed += consumed;
  }
}

/// Makes each frame's number and checksum right, as long as lengths lead from one header to the next.
Bytes mended(View stream) {
  Bytes out;
  FrameWriter writer;
  while (stream.size() >= sizeof(FrameHeader)) {
    FrameHeader header;
    std::memcpy(&header, stream.data(), sizeof header);
    const size_t left = stream.size() - sizeof header;
    const View body = stream.subspan(sizeof header, std::min<size_t>(header.body_bytes, left));
    writer.set_generation(header.generation);
    if (header.flags != 0 || header.magic != ckpt::kMagic || body.size() > ckpt::kMaxBodyBytes) break;
    writer.append(static_cast<ckpt::FrameType>(header.type), header.epoch, body, &out);
    stream = stream.subspan(sizeof header + body.size());
  }
  out.insert(out.end(), stream.begin(), stream.end());
  return out;
}

void run(View bytes) {
  Input input(bytes);
  const bool mend = input.number() % 2 == 0;
  const uint64_t generation = input.number() % 4;
  const View given = input.rest();
  const Bytes stream = mend ? mended(given) : Bytes(given.begin(), given.end());
  const Outcome whole = read_all(stream, generation, false);
  const Outcome dripped = read_all(stream, generation, true);
  REMUSD_ASSERT(whole.consumed == dripped.consumed && whole.frames.size() == dripped.frames.size() &&
                    whole.status.message() == dripped.status.message(),
                "how the bytes arrive changes nothing");
  // What was read is what a writer writes.
  FrameWriter writer;
  Bytes written;
  for (const auto& [header, body] : whole.frames) {
    writer.set_generation(header.generation);
    const uint64_t sum =
        writer.append(static_cast<ckpt::FrameType>(header.type), header.epoch, body, &written);
    REMUSD_ASSERT(sum == header.checksum, "one checksum for one frame");
  }
  REMUSD_ASSERT(same(written, View(stream).first(whole.consumed)), "frames are written as they were read");
}

void seeds(Seeds* out) {
  using ckpt::FrameType;
  for (const int mode : {0, 1}) {
    FrameWriter writer;
    writer.set_generation(3);
    Bytes stream{static_cast<std::byte>(mode), std::byte{1}};
    writer.append(FrameType::hello, 0, {}, &stream);
    writer.append(FrameType::pages, 1, Bytes(20, std::byte{7}), &stream);
    out->add(stream);
    writer.set_generation(4);
    writer.append(FrameType::heartbeat, 0, Bytes(16), &stream);
    writer.append(static_cast<FrameType>(0x8030), 0, Bytes(3), &stream);
    writer.append(FrameType::commit, 1, Bytes(40), &stream);
    out->add(stream);
    writer.append(static_cast<FrameType>(99), 0, {}, &stream);
    out->add(stream);
  }
}

REMUSD_FUZZ_TARGET(frame, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
