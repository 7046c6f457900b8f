// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Blob parts. The first byte chooses: parts as a peer may send them, against a base or not; or two contents
// that are sent one after the other through a history and put together again.
#include "ckpt/blob_delta.h"
#include "ckpt/records.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

const Bytes& base_blob() {
  static const Bytes base = [] {
    Bytes made(6000);
    for (size_t i = 0; i < made.size(); ++i) made[i] = static_cast<std::byte>(i / 7);
    return made;
  }();
  return base;
}

void run_parts(Input input, View base) {
  ckpt::BlobAssembler assembler;
  while (!input.empty() && !assembler.complete()) {
    ckpt::BlobPart part;
    const View body = input.chunk();
    if (const Status status = ckpt::decode(body, &part); !status.ok()) return require_reason(status);
    const size_t before = assembler.blob().size();
    if (const Status status = assembler.add(part, base); !status.ok()) return require_reason(status);
    REMUSD_ASSERT(assembler.blob().size() == before + part.raw_bytes, "a part adds what it says");
    REMUSD_ASSERT(assembler.blob().size() <= part.total_bytes, "a blob is as long as it says");
  }
  if (!assembler.complete()) return;
  const Bytes blob = assembler.take();
  Bytes body;
  uint64_t next = 0;
  REMUSD_ASSERT(blob.size() > ckpt::kMaxBlobPartBytes ||
                    (ckpt::append_blob_part(blob, 0, &body, &next).ok() && next == blob.size()),
                "a small blob is one part");
}

void send(ckpt::BlobHistory* history, View blob, View base) {
  ckpt::BlobAssembler assembler;
  uint64_t offset = 0;
  do {
    Bytes body;
    ckpt::BlobPart part;
    REMUSD_ASSERT(history->append_part(blob, offset, &body, &offset).ok(), "it is not too large");
    REMUSD_ASSERT(ckpt::decode(body, &part).ok() && assembler.add(part, base).ok(),
                  "what we encode we accept");
  } while (offset < blob.size());
  REMUSD_ASSERT(assembler.complete() && same(assembler.blob(), blob), "the blob comes out as it went in");
}

void run_history(Input input) {
  ckpt::BlobHistory history;
  const size_t size = input.number<uint16_t>() % 9000;
  Bytes state(size), before;
  for (int round = 0; round < 4; ++round) {
    const View change = input.chunk();
    const size_t at = size == 0 ? 0 : input.number<uint16_t>() % size;
    std::copy_n(change.begin(), std::min(change.size(), size - at),
                state.begin() + static_cast<ptrdiff_t>(at));
    send(&history, state, before);
    before = state;
  }
  state.resize(size / 2);
  send(&history, state, before);
}

void run(View bytes) {
  Input input(bytes);
  switch (input.number() % 3) {
    case 0:
      return run_parts(input, {});
    case 1:
      return run_parts(input, base_blob());
    default:
      return run_history(input);
  }
}

void seeds(Seeds* out) {
  ckpt::BlobHistory history;
  Bytes state = base_blob();
  for (const int mode : {0, 1, 1}) {
    Bytes body, seed{static_cast<std::byte>(mode)};
    uint64_t offset = 0;
    (void)history.append_part(state, 0, &body, &offset);
    put_chunk(body, &seed);
    out->add(seed);
    state[100] ^= std::byte{1};
  }
  // Enough changes to be packed.
  for (size_t i = 0; i < state.size() / 4; ++i) state[i] ^= std::byte{3};
  Bytes body, seed{std::byte{1}};
  uint64_t offset = 0;
  (void)history.append_part(state, 0, &body, &offset);
  put_chunk(body, &seed);
  out->add(seed);
  // Two parts.
  seed = {std::byte{0}};
  for (const uint64_t at : {0, 3}) {
    body.clear();
    ckpt::encode(ckpt::BlobPart{6, at, 3, ckpt::PageEncoding::raw, View(state).subspan(at, 3)}, &body);
    put_chunk(body, &seed);
  }
  out->add(seed);
  seed = {std::byte{2}};
  put_number(uint16_t{5000}, &seed);
  for (uint16_t at = 0; at < 3; ++at) {
    put_chunk(Bytes(10, std::byte{5}), &seed);
    put_number(static_cast<uint16_t>(at * 1000), &seed);
  }
  out->add(seed);
}

REMUSD_FUZZ_TARGET(blob, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
