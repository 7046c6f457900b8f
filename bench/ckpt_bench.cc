// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The inner parts of an epoch: encoding and applying pages, sealing frames, a round trip over a link.
#include <benchmark/benchmark.h>
#include <lz4.h>
#include <sys/socket.h>

#include <cstring>
#include <random>
#include <string>
#include <thread>

#include "ckpt/delta.h"
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

// Deltas. Each round takes the pages of the working set one after the other, `words` of each changed since
// the last. Two sets, so that what changes costs nothing to bring about: a page is compared with the other
// set's, which makes the base equal to it, and next time with the first again. In the cache (200 pages, as in
// an epoch) and out of it (64 MiB).

constexpr int64_t kSmall = 200, kLarge = 16384;

struct TwoSets {
  TwoSets(size_t count, int64_t words) : pages(count), sets{Bytes(count * kPageSize), {}}, base() {
    std::mt19937_64 random(7);
    // Text and numbers rather than noise: what lz4 is compared on should be to its liking.
    for (size_t at = 0; at < sets[0].size(); at += 8) {
      const uint64_t word = at % 64 < 40 ? 0x2020202020202020 + at / 512 : random() % 100000;
      std::memcpy(sets[0].data() + at, &word, sizeof word);
    }
    sets[1] = sets[0];
    for (size_t page = 0; page < count; ++page) {
      for (int64_t i = 0; i < words; ++i) {
        // Spread evenly, or all of them.
        const size_t word = words == 512 ? static_cast<size_t>(i) : (i * (512 / words) + random() % 8) % 512;
        const uint64_t value = random();
        std::memcpy(sets[1].data() + page * kPageSize + word * 8, &value, sizeof value);
      }
    }
    base = sets[0];
  }
  size_t bytes() const { return pages * kPageSize; }

  size_t pages;
  Bytes sets[2];
  Bytes base;
};

void set_bytes(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * bytes));
}

void delta_encode(benchmark::State& state, const DeltaPath* path) {
  TwoSets sets(static_cast<size_t>(state.range(0)), state.range(1));
  Bytes out(kDeltaRoomBytes);
  size_t payload = 0, round = 0;
  for (auto _ : state) {
    const std::byte* now = sets.sets[++round % 2].data();
    payload = 0;
    for (size_t at = 0; at < sets.bytes(); at += kPageSize)
      payload += path->encode(sets.base.data() + at, now + at, kPageSize - 1, out.data());
    benchmark::DoNotOptimize(payload);
  }
  set_bytes(state, sets.bytes());
  state.counters["payload_per_page"] = static_cast<double>(payload) / static_cast<double>(sets.pages);
}

void delta_apply(benchmark::State& state, const DeltaPath* path) {
  TwoSets sets(static_cast<size_t>(state.range(0)), state.range(1));
  std::vector<Bytes> deltas(sets.pages, Bytes(kDeltaRoomBytes));
  for (size_t page = 0; page < sets.pages; ++page) {
    const size_t at = page * kPageSize;
    deltas[page].resize(
        path->encode(sets.base.data() + at, sets.sets[1].data() + at, kMaxDeltaBytes, deltas[page].data()));
    deltas[page].shrink_to_fit();
  }
  for (auto _ : state) {
    for (size_t page = 0; page < sets.pages; ++page) {
      if (!check_delta(deltas[page])) return state.SkipWithError("refused");
      path->apply(deltas[page].data(), sets.base.data() + page * kPageSize);
    }
  }
  set_bytes(state, sets.bytes());
}

/// What they are measured against, on the same pages.
void delta_by_lz4(benchmark::State& state) {
  TwoSets sets(static_cast<size_t>(state.range(0)), state.range(1));
  Bytes out(kPageSize);
  size_t payload = 0;
  for (auto _ : state) {
    payload = 0;
    for (size_t at = 0; at < sets.bytes(); at += kPageSize)
      payload += static_cast<size_t>(LZ4_compress_default(
          reinterpret_cast<const char*>(sets.sets[1].data() + at), reinterpret_cast<char*>(out.data()),
          static_cast<int>(kPageSize), static_cast<int>(kPageSize)));
    benchmark::DoNotOptimize(payload);
  }
  set_bytes(state, sets.bytes());
  state.counters["payload_per_page"] = static_cast<double>(payload) / static_cast<double>(sets.pages);
}
BENCHMARK(delta_by_lz4)->ArgsProduct({{kSmall, kLarge}, {8}});

void delta_by_memcpy(benchmark::State& state) {
  TwoSets sets(static_cast<size_t>(state.range(0)), 8);
  for (auto _ : state) {
    for (size_t at = 0; at < sets.bytes(); at += kPageSize)
      std::memcpy(sets.base.data() + at, sets.sets[0].data() + at, kPageSize);
    benchmark::ClobberMemory();
  }
  set_bytes(state, sets.bytes());
}
BENCHMARK(delta_by_memcpy)->Arg(kSmall)->Arg(kLarge);

void zero_detection(benchmark::State& state) {
  const Bytes data(static_cast<size_t>(state.range(0)) * kPageSize);
  for (auto _ : state) {
    size_t zeros = 0;
    for (size_t at = 0; at < data.size(); at += kPageSize)
      zeros += std::memcmp(data.data() + at, data.data() + at + 1, kPageSize - 1) == 0 ? 1 : 0;
    benchmark::DoNotOptimize(zeros);
  }
  set_bytes(state, data.size());
}
BENCHMARK(zero_detection)->Arg(kSmall)->Arg(kLarge);

/// Whole PAGES bodies with a shadow, as the sender makes them: `words` changed words a page, -1: noise all
/// over.
void encode_epoch_with_shadow(benchmark::State& state) {
  const bool noise = state.range(0) < 0;
  TwoSets sets(kPages, noise ? 512 : state.range(0));
  if (noise) sets.sets[0] = make_pages(kRandom);
  Shadow shadow = *Shadow::make(kPages, kPages * kPageSize);
  const std::vector<uint64_t> pages = page_numbers();
  Bytes out;
  encode_pages(pages, sets.sets[0], &out, &shadow);
  size_t round = 0;
  for (auto _ : state) {
    out.clear();
    benchmark::DoNotOptimize(encode_pages(pages, sets.sets[++round % 2], &out, &shadow));
  }
  set_bytes(state, sets.bytes());
  state.counters["body_bytes"] = static_cast<double>(out.size());
}
BENCHMARK(encode_epoch_with_shadow)->Arg(0)->Arg(1)->Arg(8)->Arg(64)->Arg(512)->Arg(-1);

const bool kPathsRegistered = [] {
  for (const DeltaPath& path : delta_paths()) {
    const std::string name = std::string("/") + path.name;
    benchmark::RegisterBenchmark(("delta_encode" + name).c_str(), delta_encode, &path)
        ->ArgsProduct({{kSmall, kLarge}, {0, 1, 8, 64, 512}});
    benchmark::RegisterBenchmark(("delta_apply" + name).c_str(), delta_apply, &path)
        ->ArgsProduct({{kSmall, kLarge}, {1, 8, 64, 512}});
  }
  return true;
}();

}  // namespace
}  // namespace remusd::ckpt

BENCHMARK_MAIN();
