// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// DISK bodies. The first byte chooses: a body as a peer may send it, or runs that are encoded and decoded
// again.
#include <array>

#include "ckpt/disk_codec.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using ckpt::DiskEncoding;
using ckpt::DiskRun;

constexpr std::array<uint64_t, 2> kDisks{24u << 10, 4096};
constexpr size_t kMostRuns = 32;

struct Disks {
  std::array<Bytes, 2> content{Bytes(kDisks[0]), Bytes(kDisks[1])};
  std::array<Bytes, 2> touched{Bytes(kDisks[0]), Bytes(kDisks[1])};

  void reset() {
    for (size_t disk = 0; disk < 2; ++disk) {
      std::memset(content[disk].data(), 7, kDisks[disk]);
      std::memset(touched[disk].data(), 0, kDisks[disk]);
    }
  }
  void apply(const DiskRun& run) {
    REMUSD_ASSERT(run.disk < 2 && run.bytes > 0 && run.offset + run.bytes <= kDisks[run.disk],
                  "runs lie within their disks");
    REMUSD_ASSERT(run.encoding != DiskEncoding::lz4, "runs are decoded");
    const bool raw = run.encoding == DiskEncoding::raw;
    REMUSD_ASSERT(run.data.size() == (raw ? run.bytes : 0), "a run brings its bytes");
    std::byte* at = content[run.disk].data() + run.offset;
    if (raw) {
      std::memcpy(at, run.data.data(), run.bytes);
    } else {
      std::memset(at, 0, run.bytes);
    }
    std::memset(touched[run.disk].data() + run.offset, 1, run.bytes);
  }
};

Disks& first() {
  static Disks disks;
  return disks;
}
Disks& second() {
  static Disks disks;
  return disks;
}

/// Bodies of at most kMostRuns runs, so that whoever reads them again has done so in good time.
void apply_all(const std::vector<Bytes>& bodies, Disks* disks) {
  for (const Bytes& body : bodies) {
    uint64_t raw_bytes = 0;
    REMUSD_ASSERT(
        ckpt::check_disk(body, kDisks, &raw_bytes).ok() && raw_bytes > 0 && ckpt::verify_disk(body).ok(),
        "what we encode we accept");
    REMUSD_ASSERT(ckpt::apply_disk(body,
                                   [&](const DiskRun& run) {
                                     disks->apply(run);
                                     return Status();
                                   })
                      .ok(),
                  "and can apply");
  }
}

void add(const DiskRun& run, ckpt::DiskBody* body, std::vector<Bytes>* bodies) {
  if (body->add(run)) return;
  body->take(&bodies->emplace_back());
  REMUSD_ASSERT(body->add(run), "an empty body takes a run");
}

void run_body(View body) {
  uint64_t raw_bytes = 77;
  if (const Status status = ckpt::check_disk(body, kDisks, &raw_bytes); !status.ok()) {
    REMUSD_ASSERT(raw_bytes == 0, "nothing is counted of what is refused");
    return require_reason(status);
  }
  first().reset();
  const Status verified = ckpt::verify_disk(body);
  uint64_t applied_bytes = 0;
  ckpt::DiskBody encoder;
  std::vector<Bytes> again;
  const Status applied = ckpt::apply_disk(body, [&](const DiskRun& run) {
    first().apply(run);
    applied_bytes += run.bytes;
    add(run, &encoder, &again);
    return Status();
  });
  REMUSD_ASSERT(verified.ok() == applied.ok(), "what is verified can be applied, and nothing else");
  if (!verified.ok()) return require_reason(verified);
  REMUSD_ASSERT(applied_bytes == raw_bytes, "all runs are applied");
  for (size_t disk = 0; disk < 2; ++disk) {
    for (size_t at = 0; at < kDisks[disk]; at += 512) {  // samples
      REMUSD_ASSERT(first().touched[disk][at] == std::byte{1} || first().content[disk][at] == std::byte{7},
                    "what no run names keeps its content");
    }
  }
  // Encoded anew, it makes the same disks.
  encoder.take(&again.emplace_back());
  second().reset();
  apply_all(again, &second());
  REMUSD_ASSERT(
      same(first().content[0], second().content[0]) && same(first().content[1], second().content[1]),
      "the disks are the same");
}

void run_runs(Input input) {
  first().reset();
  second().reset();
  ckpt::DiskBody encoder;
  std::vector<Bytes> bodies;
  for (size_t i = 0; i < kMostRuns && !input.empty(); ++i) {
    const uint8_t what = input.number();
    DiskRun run;
    run.disk = what & 1;
    run.offset = input.number<uint16_t>() % kDisks[run.disk];
    const auto most = static_cast<uint32_t>(kDisks[run.disk] - run.offset);
    Bytes data;
    if ((what >> 1) % 4 == 0) {
      run.encoding = (what & 8) != 0 ? DiskEncoding::hole : DiskEncoding::zero;
      run.bytes = std::min<uint32_t>(most, 1u + input.number<uint16_t>());
    } else {
      const View chunk = input.chunk();
      data.assign(chunk.begin(), chunk.begin() + std::min<ptrdiff_t>(most, std::ssize(chunk)));
      // Some that lz4 makes smaller.
      if ((what & 16) != 0) data.resize(std::min<size_t>(most, data.size() + 600), std::byte{what});
      if (data.empty()) continue;
      run.bytes = static_cast<uint32_t>(data.size());
      run.data = data;
    }
    first().apply(run);
    add(run, &encoder, &bodies);
  }
  if (!encoder.empty()) encoder.take(&bodies.emplace_back());
  apply_all(bodies, &second());
  REMUSD_ASSERT(
      same(first().content[0], second().content[0]) && same(first().content[1], second().content[1]),
      "the disks over there are those here");
}

void run(View bytes) {
  Input input(bytes);
  if (input.number() % 2 == 0) return run_body(input.rest());
  run_runs(input);
}

void seeds(Seeds* out) {
  const Bytes text(700, std::byte{'a'});
  Bytes noise(300);
  uint32_t state = 1;
  for (std::byte& byte : noise) byte = static_cast<std::byte>((state = state * 1664525 + 1013904223) >> 24);
  ckpt::DiskBody encoder;
  REMUSD_ASSERT(encoder.add({0, 100, 700, DiskEncoding::raw, text}) &&
                    encoder.add({1, 0, 300, DiskEncoding::raw, noise}) &&
                    encoder.add({0, 4096, 4096, DiskEncoding::hole, {}}) &&
                    encoder.add({1, 512, 512, DiskEncoding::zero, {}}),
                "they fit");
  Bytes body{std::byte{0}};
  encoder.take(&body);
  out->add(body);
  Bytes runs{std::byte{1}};
  for (const auto what : std::to_array<uint8_t>({0x02, 0x13, 0x00, 0x09})) {
    put_number(what, &runs);
    put_number(uint16_t{900}, &runs);
    put_chunk(noise, &runs);
  }
  out->add(runs);
}

REMUSD_FUZZ_TARGET(disk_codec, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
