// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// QEMU's migration stream and device state: a chunk that is the stream, and the rest, which is the state.
#include "guest/qemu/stream.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

namespace qemu = guest::qemu;

void run(View bytes) {
  Input input(bytes);
  const View stream = input.chunk();
  const View device = input.rest();
  const auto contents = qemu::inspect(stream);
  const auto base = qemu::extract_base(stream, "ram0");
  if (!contents.ok()) {
    require_reason(contents.status());
    REMUSD_ASSERT(!base.ok() && base.status().message() == contents.status().message(),
                  "nothing is taken from a stream that is refused");
    REMUSD_ASSERT(!qemu::compose(stream, device).ok(), "nor is it fed to anybody");
    return;
  }
  REMUSD_ASSERT(contents->ram_offset >= 8 && contents->ram_offset <= contents->head_bytes &&
                    contents->head_bytes <= stream.size(),
                "the head lies in the stream");
  REMUSD_ASSERT(contents->blocks.size() <= qemu::kMaxRamBlocks, "blocks are bounded");
  if (!base.ok()) return require_reason(base.status());
  const auto again = qemu::inspect(*base);
  REMUSD_ASSERT(again.ok() && again->head_bytes == base->size() && again->ram_offset == 8 &&
                    again->blocks.size() == contents->blocks.size(),
                "a base is the head of a stream, and whole");
  const auto twice = qemu::extract_base(*base, "ram0");
  REMUSD_ASSERT(twice.ok() && *twice == *base, "the base of a base is itself");
  const auto composed = qemu::compose(*base, device);
  if (!composed.ok()) return require_reason(composed.status());
  REMUSD_ASSERT(composed->size() == base->size() + device.size() - 8, "one header for both");
  REMUSD_ASSERT(same(View(*composed).first(base->size()), *base), "the base leads");
  REMUSD_ASSERT(same(View(*composed).subspan(base->size()), device.subspan(8)), "the state follows");
}

void be(uint64_t value, int size, Bytes* out) {
  for (int i = size - 1; i >= 0; --i) out->push_back(static_cast<std::byte>(value >> (8 * i) & 0xff));
}

void name(std::string_view text, Bytes* out) {
  be(text.size(), 1, out);
  const auto bytes = std::as_bytes(std::span(text));
  out->insert(out->end(), bytes.begin(), bytes.end());
}

void begin(Bytes* out) {
  be(0x5145564d, 4, out);
  be(3, 4, out);
}

void configuration(Bytes* out) {
  be(7, 1, out);
  be(2, 4, out);
  be('p', 1, out);
  be('c', 1, out);
  be(5, 1, out);
  name("configuration/target-page-bits", out);
  be(1, 4, out);
  be(12, 4, out);
  be(5, 1, out);
  name("configuration/capabilities", out);
  be(1, 4, out);
  be(1, 4, out);
  name("x-ignore-shared", out);
}

void ram(Bytes* out) {
  be(1, 1, out);
  be(2, 4, out);
  name("ram", out);
  be(0, 4, out);
  be(4, 4, out);
  be(0x3000 | 0x04, 8, out);  // the list of blocks
  name("ram0", out);
  be(0x2000, 8, out);
  be(0, 8, out);
  name("bios", out);
  be(0x1000, 8, out);
  be(0xfffff000, 8, out);
  be(0x10, 8, out);
  be(0x7e, 1, out);
  be(2, 4, out);
  be(3, 1, out);
  be(2, 4, out);
  be(0x02, 8, out);  // a page of zeros
  name("bios", out);
  be(0, 1, out);
  be(0x10, 8, out);
  be(0x7e, 1, out);
  be(2, 4, out);
}

void device_state(Bytes* out) {
  begin(out);
  be(4, 1, out);
  be(0, 4, out);
  name("timer", out);
  be(0, 4, out);
  be(2, 4, out);
  be(77, 8, out);
  be(0x7e, 1, out);
  be(0, 4, out);
  be(0, 1, out);
}

void seeds(Seeds* out) {
  for (const bool configured : {false, true}) {
    Bytes stream, input, state;
    begin(&stream);
    if (configured) configuration(&stream);
    ram(&stream);
    put_chunk(stream, &input);
    device_state(&state);
    input.insert(input.end(), state.begin(), state.end());
    out->add(input);
  }
  out->words = {"ram",
                "ram0",
                "bios",
                "configuration/uuid",
                "configuration/capabilities",
                "configuration/target-page-bits",
                "QEVM"};
}

REMUSD_FUZZ_TARGET(stream, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
