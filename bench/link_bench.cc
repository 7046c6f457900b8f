// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a link costs: the way of a COMMIT to the backup's handler and of the ACK back, with 0 to 1 MiB of
// pages before it; a stream of pages one way; a wake-up. Variants of LinkOptions alternate within one run, so
// that what else the machine does meets all of them, with plain text and with TLS. Usage: link_bench [rounds
// [part of transport/measure [part of variant]]]; the first variant is what the others are compared with.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "bench/tls_pair.h"
#include "ckpt/link.h"

namespace remusd::ckpt {
namespace {

struct Variant {
  const char* name;
  LinkOptions options;
  bool tls = false;
};

struct Figures {
  double micros = 0;                     // of one round trip (the median), or of one frame of a stream
  double near_cpu = 0, far_cpu = 0;      // microseconds of processor time for the same
  double near_calls = 0, far_calls = 0;  // system calls for the same
};

enum class Kind {
  round_trips,  // one after the other
  paced,        // with a pause before each, so that both sides sleep, as between epochs
  stream,       // PAGES alone, one COMMIT at the end
  wakes,        // from another thread, the next when the last was seen
  free_wakes,   // from another thread that does not wait
};

struct Measure {
  const char* name;
  Kind kind;
  size_t body_bytes;  // of PAGES before each COMMIT; 0: none
  int count;
};

constexpr Duration kPause = std::chrono::microseconds(500);
constexpr size_t kCommitBytes = 48, kAckBytes = 16;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "link_bench: %s\n", what.c_str());
  std::exit(1);
}

/// One side of a measurement; its handshake goes on with its waits.
Result<std::unique_ptr<Link>> adopt(ScopedFd socket, const Variant& variant, bool connects) {
  if (!variant.tls) return Link::adopt(std::move(socket), variant.options);
  static const TlsPair keys;
  auto session = connects ? keys.near().connect("b") : keys.far().accept();
  if (!session.ok()) return session.status();
  return Link::adopt(std::move(socket), variant.options, *std::move(session));
}

std::pair<ScopedFd, ScopedFd> unix_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) fail("socketpair");
  return {ScopedFd(fds[0]), ScopedFd(fds[1])};
}

std::pair<ScopedFd, ScopedFd> tcp_pair() {
  const ScopedFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof any;
  auto* address = reinterpret_cast<sockaddr*>(&any);
  if (::bind(listener.get(), address, size) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), address, &size) != 0)
    fail("listen");
  auto client = connect_to("127.0.0.1:" + std::to_string(ntohs(any.sin_port)), std::chrono::seconds(5));
  if (!client.ok()) fail(client.status().message());
  return {*std::move(client), ScopedFd(::accept(listener.get(), nullptr, nullptr))};
}

double micros(Duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

double cpu_micros(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}

/// Answers each COMMIT. Its figures are taken at the first and at the last COMMIT of the measured part.
class Peer {
 public:
  Peer(ScopedFd socket, const Variant& variant, uint64_t first, uint64_t last)
      : first_(first), last_(last), thread_([this, fd = std::move(socket), &variant]() mutable {
          auto link = adopt(std::move(fd), variant, /*connects=*/false);
          check(link.status());
          run(**link);
        }) {}
  void join() { thread_.join(); }
  double cpu() const { return cpu_; }
  double calls() const { return calls_; }

 private:
  void run(Link& link) {
    const std::vector<std::byte> ack(kAckBytes);
    while (link.wait(Time::max(),
                     [&](const FrameView& frame) {
                       if (frame.type() != FrameType::commit) return Status();
                       const uint64_t epoch = frame.header.epoch;
                       if (epoch == first_ || epoch == last_) {
                         const double sign = epoch == first_ ? -1 : 1;
                         cpu_ += sign * cpu_micros(CLOCK_THREAD_CPUTIME_ID);
                         calls_ += sign * static_cast<double>(link.stats().system_calls);
                       }
                       return link.append(FrameType::ack, epoch, ack);
                     })
               .ok()) {
    }
  }

  uint64_t first_, last_;
  double cpu_ = 0, calls_ = 0;
  std::thread thread_;  // last: it uses the others
};

void put(Link& link, FrameType type, uint64_t epoch, std::span<const std::byte> body) {
  while (link.send_space() < sizeof(FrameHeader) + body.size())
    check(link.wait(Time::max(), [](const FrameView&) { return Status(); }));
  check(link.append(type, epoch, body));
}

void round_trip(Link& link, uint64_t epoch) {
  static const std::vector<std::byte> commit(kCommitBytes);
  put(link, FrameType::commit, epoch, commit);
  for (bool answered = false; !answered;)
    check(link.wait(Time::max(), [&](const FrameView& frame) {
      answered = frame.type() == FrameType::ack && frame.header.epoch == epoch;
      return Status();
    }));
}

/// The far side of the figures stays 0.
Figures run_wakes(const Measure& measure, const Variant& variant, bool tcp) {
  auto [near_fd, far_fd] = tcp ? tcp_pair() : unix_pair();
  auto link = Link::adopt(std::move(near_fd), variant.options);
  check(link.status());
  std::atomic<int> posted = 0, seen = 0;
  std::thread waker([&] {
    for (int i = 1; i <= measure.count; ++i) {
      posted = i;
      (*link)->wake();
      while (measure.kind == Kind::wakes && seen != i) std::this_thread::yield();
    }
  });
  const double cpu = cpu_micros(CLOCK_THREAD_CPUTIME_ID);
  const Time began = Clock::now();
  while (seen < measure.count) {
    check((*link)->wait(Time::max(), [](const FrameView&) { return Status(); }));
    seen = posted.load();
  }
  Figures figures;
  figures.micros = micros(Clock::now() - began) / measure.count;
  figures.near_cpu = (cpu_micros(CLOCK_THREAD_CPUTIME_ID) - cpu) / measure.count;
  figures.near_calls = static_cast<double>((*link)->stats().system_calls) / measure.count;
  waker.join();
  return figures;
}

Figures run(const Measure& measure, const Variant& variant, bool tcp) {
  auto [near_fd, far_fd] = tcp ? tcp_pair() : unix_pair();
  const bool stream = measure.kind == Kind::stream;
  const int warm = stream ? 1 : 20;
  const int rounds = stream ? 1 : measure.count;
  const auto first = static_cast<uint64_t>(warm), last = static_cast<uint64_t>(warm + rounds);
  Peer peer(std::move(far_fd), variant, first, last);
  auto link = adopt(std::move(near_fd), variant, /*connects=*/true);
  check(link.status());
  const std::vector<std::byte> body(measure.body_bytes, std::byte{0x5a});
  std::vector<double> times;
  Figures figures;
  uint64_t calls = 0;
  Time began{};
  for (uint64_t epoch = 1; epoch <= last; ++epoch) {
    if (epoch == first + 1) {
      figures.near_cpu = -cpu_micros(CLOCK_THREAD_CPUTIME_ID);
      calls = (*link)->stats().system_calls;
    }
    if (measure.kind == Kind::paced) std::this_thread::sleep_for(kPause);
    began = Clock::now();
    const int frames = stream ? (epoch > first ? measure.count : 64) : (body.empty() ? 0 : 1);
    for (int i = 0; i < frames; ++i) put(**link, FrameType::pages, epoch, body);
    round_trip(**link, epoch);
    if (epoch > first) times.push_back(micros(Clock::now() - began));
  }
  const double count = measure.count;
  figures.near_cpu = (figures.near_cpu + cpu_micros(CLOCK_THREAD_CPUTIME_ID)) / count;
  figures.near_calls = static_cast<double>((*link)->stats().system_calls - calls) / count;
  figures.micros = stream ? times[0] / count : median(times);
  link->reset();
  peer.join();
  figures.far_cpu = peer.cpu() / count;
  figures.far_calls = peer.calls() / count;
  return figures;
}

void report(const std::string& name, const std::vector<Variant>& variants,
            const std::vector<std::vector<Figures>>& runs) {
  std::printf("%-22s %-14s %9s %6s %9s %6s %9s %6s %8s %8s\n", name.c_str(), "variant", "us", "ratio",
              "cpu near", "ratio", "cpu far", "ratio", "calls n", "calls f");
  const auto of = [](const std::vector<Figures>& all, double Figures::*field) {
    std::vector<double> values;
    for (const Figures& one : all) values.push_back(one.*field);
    return median(values);
  };
  // Of each round against the first variant in the same round.
  const auto ratio = [&](size_t variant, double Figures::*field) {
    std::vector<double> values;
    for (size_t i = 0; i < runs[0].size(); ++i)
      values.push_back(runs[variant][i].*field / std::max(runs[0][i].*field, 1e-9));
    return median(values);
  };
  for (size_t i = 0; i < variants.size(); ++i) {
    std::printf("%-22s %-14s %9.2f %6.3f %9.2f %6.3f %9.2f %6.3f %8.2f %8.2f\n", "", variants[i].name,
                of(runs[i], &Figures::micros), ratio(i, &Figures::micros), of(runs[i], &Figures::near_cpu),
                ratio(i, &Figures::near_cpu), of(runs[i], &Figures::far_cpu), ratio(i, &Figures::far_cpu),
                of(runs[i], &Figures::near_calls), of(runs[i], &Figures::far_calls));
  }
  std::fflush(stdout);
}

int run_all(int rounds, const std::string& filter, const std::string& some) {
  // A change of the link is measured by an option that turns it on, here, for as long as it is not decided.
  std::vector<Variant> variants = {
      {"plain", {}},
      {"plain again", {}},  // how far equal things are apart in this run
      {"tls", {}, true},
      {"queue 4 MiB", {.send_queue_bytes = 4u << 20}},
      {"receive 8 MiB", {.receive_buffer_bytes = 8u << 20}},
  };
  const char* const first = variants[0].name;
  std::erase_if(variants, [&](const Variant& one) {
    return !some.empty() && std::string(one.name).find(some) == std::string::npos && one.name != first;
  });
  const Measure measures[] = {
      {"commit", Kind::round_trips, 0, 3000},
      {"commit_64k", Kind::round_trips, 64u << 10, 2000},
      {"commit_256k", Kind::round_trips, 256u << 10, 1000},
      {"commit_1m", Kind::round_trips, 1u << 20, 300},
      {"paced_commit", Kind::paced, 0, 500},
      {"paced_commit_1m", Kind::paced, 1u << 20, 150},
      {"stream_1m", Kind::stream, 1u << 20, 1024},
      {"wake", Kind::wakes, 0, 20000},
      {"wake_free", Kind::free_wakes, 0, 20000},
  };
  for (const bool tcp : {true, false}) {
    for (const Measure& measure : measures) {
      const std::string name = std::string(tcp ? "tcp/" : "unix/") + measure.name;
      if (name.find(filter) == std::string::npos) continue;
      std::vector<std::vector<Figures>> runs(variants.size());
      for (int round = 0; round < rounds; ++round)
        for (size_t i = 0; i < variants.size(); ++i) {
          const size_t which = (i + round) % variants.size();
          runs[which].push_back(measure.kind == Kind::wakes || measure.kind == Kind::free_wakes
                                    ? run_wakes(measure, variants[which], tcp)
                                    : run(measure, variants[which], tcp));
        }
      report(name, variants, runs);
    }
  }
  return 0;
}

}  // namespace
}  // namespace remusd::ckpt

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 7;
  return remusd::ckpt::run_all(rounds < 1 ? 1 : rounds, argc > 2 ? argv[2] : "", argc > 3 ? argv[3] : "");
}
