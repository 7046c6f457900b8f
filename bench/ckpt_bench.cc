// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The inner parts of an epoch: encoding and applying pages, sealing frames, a round trip over a link.
#include <benchmark/benchmark.h>
#include <sys/socket.h>

#include <random>
#include <thread>

#include "ckpt/link.h"
#include "ckpt/page_codec.h"

namespace remusd::ckpt {
namespace {

constexpr uint64_t kPages = 200;  // of a typical epoch of 25 ms

enum Content { kZero, kCompressible, kRandom, kMixed };

Bytes make_pages(int content) {
  std::mt19937_64 random(1);
  Bytes data(kPages * kPageSize);
  for (size_t page = 0; page < kPages; ++page) {
    const int kind = content == kMixed ? static_cast<int>(page % 3) : content;
    for (size_t at = 0; kind != kZero && at < kPageSize; ++at) {
      // Compressible: short runs and a small alphabet, as in heaps and page tables.
      const uint64_t value = kind == kRandom ? random() : (at % 16 < 10 ? at / 64 : random() % 8);
      data[page * kPageSize + at] = static_cast<std::byte>(value);
    }
  }
  return data;
}

std::vector<uint64_t> page_numbers() {
  std::vector<uint64_t> pages(kPages);
  for (uint64_t i = 0; i < kPages; ++i) pages[i] = i;
  return pages;
}

void encode_epoch(benchmark::State& state) {
  const Bytes data = make_pages(static_cast<int>(state.range(0)));
  const std::vector<uint64_t> pages = page_numbers();
  Bytes out;
  for (auto _ : state) {
    out.clear();
    benchmark::DoNotOptimize(encode_pages(pages, data, &out));
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * data.size()));
  state.counters["body_bytes"] = static_cast<double>(out.size());
}
BENCHMARK(encode_epoch)->Arg(kZero)->Arg(kCompressible)->Arg(kRandom)->Arg(kMixed);

void check_verify_apply(benchmark::State& state) {
  const Bytes data = make_pages(static_cast<int>(state.range(0)));
  Bytes body, memory(data.size());
  encode_pages(page_numbers(), data, &body);
  for (auto _ : state) {
    uint32_t pages = 0;
    if (!check_pages(body, kPages, &pages).ok() || !verify_pages(body).ok() ||
        !apply_pages(body, memory).ok())
      state.SkipWithError("refused");
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * data.size()));
}
BENCHMARK(check_verify_apply)->Arg(kZero)->Arg(kCompressible)->Arg(kRandom)->Arg(kMixed);

void frame_append(benchmark::State& state) {
  const Bytes body(static_cast<size_t>(state.range(0)), std::byte{0x5a});
  FrameWriter writer;
  Bytes out;
  for (auto _ : state) {
    out.clear();
    benchmark::DoNotOptimize(writer.append(FrameType::pages, 1, body, &out));
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * body.size()));
}
BENCHMARK(frame_append)->Arg(40)->Arg(4096)->Arg(1 << 20);

/// A body there, an empty frame back: what an epoch waits for between its COMMIT and the ACK.
void link_round_trip(benchmark::State& state) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
    return state.SkipWithError("socketpair");
  auto near = Link::adopt(ScopedFd(fds[0]), {});
  auto far = Link::adopt(ScopedFd(fds[1]), {});
  if (!near.ok() || !far.ok()) return state.SkipWithError("no link");
  std::thread peer([link = std::move(*far)]() mutable {
    while (link->wait(Time::max(),
                      [&](const FrameView& frame) {
                        return link->append(FrameType::ack, frame.header.epoch, {});
                      })
               .ok()) {
    }
  });
  const Bytes body(static_cast<size_t>(state.range(0)), std::byte{0x5a});
  for (auto _ : state) {
    if (!(*near)->append(FrameType::pages, 1, body).ok()) state.SkipWithError("append");
    for (bool answered = false; !answered;) {
      const Status status = (*near)->wait(Time::max(), [&](const FrameView&) {
        answered = true;
        return Status();
      });
      if (!status.ok()) return state.SkipWithError("wait");
    }
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * body.size()));
  near->reset();
  peer.join();
}
BENCHMARK(link_round_trip)->Arg(40)->Arg(256 << 10)->Arg(1 << 20)->UseRealTime();

}  // namespace
}  // namespace remusd::ckpt

BENCHMARK_MAIN();
