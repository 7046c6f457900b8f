// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// QEMU's migration stream and device state: a chunk that is the stream, and the rest, which is the state.
#include "guest/qemu/stream.h"
#include "tests/fuzz/target.h"
#include "tests/guest_qemu_stream_writer.h"

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

using Writer = qemu::StreamWriter;

void put_configuration(Writer* out) {
  out->u8(7).be32(2).text("pc");
  out->u8(5).name("configuration/target-page-bits").be32(1).be32(12);
  out->u8(5).name("configuration/capabilities").be32(1).be32(1).name("x-ignore-shared");
}

Bytes device_state() {
  return Writer()
      .header()
      .u8(4)
      .be32(0)
      .name("timer")
      .be32(0)
      .be32(2)
      .be64(77)
      .u8(0x7e)
      .be32(0)
      .u8(0)
      .bytes();
}

void seeds(Seeds* out) {
  const Bytes state = device_state();
  for (const bool configured : {false, true}) {
    Writer stream;
    stream.header();
    if (configured) put_configuration(&stream);
    stream.ram_start();
    // A page of zeros, which names its block; a whole page would only be much to change in vain.
    stream.section(3).be64(0x02).name("pc.bios").u8(0).be64(0x10).footer();
    Bytes input;
    put_chunk(stream.bytes(), &input);
    input.insert(input.end(), state.begin(), state.end());
    out->add(input);
  }
  out->words = {"ram",
                "ram0",
                "pc.bios",
                "configuration/uuid",
                "configuration/capabilities",
                "configuration/target-page-bits",
                "QEVM"};
}

REMUSD_FUZZ_TARGET(stream, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
