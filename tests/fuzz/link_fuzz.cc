// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Frames over a real connection: the link must deliver exactly what a reader finds in the same bytes, and end
// with what the reader says.
#include "ckpt/link.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

constexpr std::chrono::seconds kPatience{20};

void run(View bytes) {
  Input input(bytes);
  const size_t already = input.number() % 5;
  const View stream = input.rest();

  ckpt::FrameReader reader;
  std::vector<uint64_t> checksums;
  Status refused;
  for (View left = stream; refused.ok();) {
    ckpt::FrameView frame;
    size_t consumed = 0;
    refused = reader.next(left, &frame, &consumed);
    if (consumed == 0) break;
    checksums.push_back(frame.header.checksum);
    left = left.subspan(consumed);
  }

  auto [here, there] = socket_pair();
  const View before = stream.first(std::min(already, stream.size()));
  say_and_end(there.get(), stream.subspan(before.size()));
  auto link = ckpt::Link::adopt(std::move(here),
                                {.send_queue_bytes = ckpt::kMinSendQueueBytes,
                                 .receive_buffer_bytes = ckpt::kMaxBodyBytes + (64u << 10)},
                                before);
  REMUSD_ASSERT(link.ok(), "there is a ring");
  size_t delivered = 0;
  const Time deadline = Clock::now() + kPatience;
  while ((*link)->open()) {
    (void)(*link)->wait(deadline, [&](const ckpt::FrameView& frame) {
      REMUSD_ASSERT(delivered < checksums.size() && frame.header.checksum == checksums[delivered],
                    "the link delivers what the reader finds");
      ++delivered;
      return Status();
    });
    REMUSD_ASSERT(Clock::now() < deadline, "a peer that is gone is noticed");
  }
  REMUSD_ASSERT(delivered == checksums.size(), "nothing that came whole is lost");
  require_reason((*link)->close_reason());
  // What looks like TLS has a reason of its own.
  const std::string_view begin = text_of(stream.first(std::min<size_t>(2, stream.size())));
  const bool tls = delivered == 0 && (begin == "\x16\x03" || begin == "\x15\x03");
  REMUSD_ASSERT(refused.ok() || (*link)->close_reason().message() == refused.message() ||
                    (tls && (*link)->close_reason().code() == Code::denied),
                "the link says why it does not trust its peer");
}

void seeds(Seeds* out) {
  ckpt::FrameWriter writer;
  writer.set_generation(3);
  Bytes stream{std::byte{0}};
  writer.append(ckpt::FrameType::hello, 0, Bytes(30), &stream);
  out->add(stream);
  writer.append(ckpt::FrameType::pages, 1, Bytes(100, std::byte{7}), &stream);
  stream[0] = std::byte{4};
  out->add(stream);
  writer.append(static_cast<ckpt::FrameType>(70), 0, {}, &stream);
  out->add(stream);
}

REMUSD_FUZZ_TARGET(link, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
