// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What finding and copying a guest's dirty pages costs on one thread, in a process that is tracked from
// outside as QEMU is. It must be run by root.
#include <benchmark/benchmark.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ckpt/scoped_fd.h"
#include "guest/qemu/tracker.h"

namespace remusd::guest::qemu {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr uint64_t kWork = 8u << 20;  // that a guest reads and writes between two pauses: the caches are its

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

/// A child with memory of its own that writes pages when it is told to.
class Writer {
 public:
  Writer(uint64_t bytes, uint64_t touched) {
    file_.reset(::memfd_create("bench-ram", MFD_CLOEXEC));
    if (!file_ || ::ftruncate(file_.get(), static_cast<off_t>(bytes)) != 0) die("make memory");
    void* const at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    int orders[2], done[2];
    if (at == MAP_FAILED || ::pipe(orders) != 0 || ::pipe(done) != 0) die("make memory");
    memory_ = {static_cast<volatile char*>(at), bytes};
    pid_ = ::fork();
    if (pid_ < 0) die("fork");
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      serve(orders[0], done[1], touched);
    }
    ::close(orders[0]);
    ::close(done[1]);
    orders_.reset(orders[1]);
    done_.reset(done[0]);
    write(0);  // Its memory is touched.
  }
  ~Writer() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(const_cast<char*>(memory_.at), memory_.bytes);
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  /// So many pages of what is touched, as far from each other as they can be.
  void write(uint64_t pages) {
    char sign = 0;
    if (::write(orders_.get(), &pages, sizeof pages) != sizeof pages || ::read(done_.get(), &sign, 1) != 1)
      die("the child");
  }
  int pid() const { return pid_; }
  int file() const { return file_.get(); }
  TrackedRange ram() const { return {reinterpret_cast<uint64_t>(memory_.at), memory_.bytes}; }
  const volatile char* memory() const { return memory_.at; }

 private:
  struct Memory {
    volatile char* at = nullptr;
    uint64_t bytes = 0;
  };

  [[noreturn]] void serve(int orders, int done, uint64_t touched) {
    for (uint64_t at = 0; at < touched; at += kPageSize) memory_.at[at] = 1;
    std::vector<char> work(kWork);
    for (uint64_t pages = 0; ::read(orders, &pages, sizeof pages) == sizeof pages;) {
      for (char& byte : work) ++byte;
      const uint64_t step = pages == 0 ? 0 : touched / kPageSize / pages * kPageSize;
      for (uint64_t i = 0; i < pages; ++i) memory_.at[i * step] = memory_.at[i * step] + 1;
      if (::write(done, "", 1) != 1) break;
    }
    ::_exit(0);
  }

  ScopedFd file_, orders_, done_;
  Memory memory_;
  int pid_ = -1;
};

/// Pages written in an epoch, of a guest with so much memory (GiB), so much of it touched.
void scan(benchmark::State& state) {
  const auto memory = static_cast<uint64_t>(state.range(0)), touched = static_cast<uint64_t>(state.range(1));
  Writer writer(memory * kGib, touched * kGib);
  auto tracker = plant_tracker(writer.pid(), writer.ram(), writer.file(), TrackerKind::async, nullptr);
  if (!tracker.ok()) return state.SkipWithError(tracker.status().message().c_str());
  PageSet dirty;
  dirty.reserve(4096);
  for (auto _ : state) {
    writer.write(static_cast<uint64_t>(state.range(2)));
    const auto began = std::chrono::steady_clock::now();
    const Status status = (*tracker)->collect(&dirty);
    state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    if (!status.ok()) return state.SkipWithError(status.message().c_str());
  }
  state.counters["s_per_gib"] =
      benchmark::Counter(static_cast<double>(memory),
                         benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
// One thread scans so much.
BENCHMARK(scan)
    ->ArgNames({"memory_gib", "touched_gib", "dirty"})
    ->Args({1, 1, 0})
    ->Args({1, 1, 200})
    ->Args({4, 1, 0})
    ->Args({4, 1, 200})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

/// Dirty pages far apart, into a chunk.
void copy(benchmark::State& state) {
  const auto pages = static_cast<uint64_t>(state.range(0));
  Writer writer(kGib, kGib);
  std::vector<char> chunk(pages * kPageSize);
  for (auto _ : state) {
    state.PauseTiming();
    writer.write(pages);
    state.ResumeTiming();
    const uint64_t step = kGib / kPageSize / pages * kPageSize;
    for (uint64_t i = 0; i < pages; ++i)
      std::memcpy(&chunk[i * kPageSize], const_cast<const char*>(writer.memory()) + i * step, kPageSize);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * pages * kPageSize));
}
BENCHMARK(copy)->ArgName("dirty")->Arg(200)->Arg(2000);

}  // namespace
}  // namespace remusd::guest::qemu

BENCHMARK_MAIN();
