// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a link costs: the way of a COMMIT to the backup's handler and of the ACK back, with 0 to 1 MiB of pages
// before it, and a stream of pages one way. Variants of the link alternate within one run, so that what else
// the machine does meets all of them. Usage: link_bench [rounds [transport/measure]]
#include <arpa/inet.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#include <sched.h>
#include <atomic>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <latch>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/link.h"

namespace remusd::ckpt {
namespace {

struct Variant {
  const char* name;
  LinkOptions options;
  int encode = 0;
};

struct Figures {
  double micros = 0;  // of one round trip (the median), or of one frame of a stream
  double near_cpu = 0, far_cpu = 0;      // microseconds of processor time for the same
  double near_enters = 0, far_enters = 0;  // system calls for the same
};

struct Measure {
  const char* name;
  size_t body_bytes;  // of PAGES before each COMMIT; 0: none
  int count;
  bool stream;        // no COMMIT but at the end
  int pause_us = 0;
};

constexpr size_t kCommitBytes = 48, kAckBytes = 16;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "link_bench: %s\n", what.c_str());
  std::exit(1);
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
          auto link = Link::adopt(std::move(fd), variant.options);
          check(link.status());
          run(**link);
        }) {}
  void join() { thread_.join(); }
  double cpu() const { return cpu_; }
  double enters() const { return enters_; }

 private:
  void run(Link& link) {
    const std::vector<std::byte> ack(kAckBytes);
    while (link.wait(Time::max(), [&](const FrameView& frame) {
                 if (frame.type() != FrameType::commit) return Status();
                 const uint64_t epoch = frame.header.epoch;
                 if (epoch == first_ || epoch == last_) {
                   const double sign = epoch == first_ ? -1 : 1;
                   cpu_ += sign * cpu_micros(CLOCK_THREAD_CPUTIME_ID);
                   enters_ += sign * static_cast<double>(link.stats().enters);
                 }
                 return link.append(FrameType::ack, epoch, ack);
               }).ok()) {
    }
  }

  uint64_t first_, last_;
  double cpu_ = 0, enters_ = 0;
  std::thread thread_;  // last: it uses the others
};

void put(Link& link, FrameType type, uint64_t epoch, std::span<const std::byte> body, int encode = 0) {
  while (link.send_space() < sizeof(FrameHeader) + body.size())
    check(link.wait(Time::max(), [](const FrameView&) { return Status(); }));
  if (encode == 2) {
    std::memcpy(link.reserve(), body.data(), body.size());
    check(link.commit(type, epoch, body.size()));
    return;
  }
  if (encode == 1) {
    static std::vector<std::byte> encoded(1 << 20);
    std::memcpy(encoded.data(), body.data(), body.size());
    body = {encoded.data(), body.size()};
  }
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

/// A wake() from another thread every few microseconds while the link's thread is busy or asleep.
Figures run_wake(const Measure& measure, const Variant& variant, bool tcp) {
  auto [near_fd, far_fd] = tcp ? tcp_pair() : unix_pair();
  auto link = Link::adopt(std::move(near_fd), variant.options);
  check(link.status());
  std::atomic<int> posted = 0, seen = 0;
  std::thread waker([&] {
    for (int i = 1; i <= measure.count; ++i) {
      posted = i;
      (*link)->wake();
      if (!measure.stream) while (seen != i) ::sched_yield();
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
  figures.near_enters = static_cast<double>((*link)->stats().enters) / measure.count;
  waker.join();
  figures.far_cpu = figures.far_enters = 1;
  return figures;
}

Figures run(const Measure& measure, const Variant& variant, bool tcp) {
  auto [near_fd, far_fd] = tcp ? tcp_pair() : unix_pair();
  const int warm = measure.stream ? 1 : 20;
  const int rounds = measure.stream ? 1 : measure.count;
  const auto first = static_cast<uint64_t>(warm), last = static_cast<uint64_t>(warm + rounds);
  Peer peer(std::move(far_fd), variant, first, last);
  auto link = Link::adopt(std::move(near_fd), variant.options);
  check(link.status());
  const std::vector<std::byte> body(measure.body_bytes, std::byte{0x5a});
  std::vector<double> times;
  Figures figures;
  uint64_t enters = 0;
  Time began{};
  for (uint64_t epoch = 1; epoch <= last; ++epoch) {
    if (epoch == first + 1) {
      figures.near_cpu = -cpu_micros(CLOCK_THREAD_CPUTIME_ID);
      enters = (*link)->stats().enters;
    }
    if (measure.pause_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(measure.pause_us));
    began = Clock::now();
    const int frames = measure.stream ? (epoch > first ? measure.count : 64) : (body.empty() ? 0 : 1);
    for (int i = 0; i < frames; ++i) put(**link, FrameType::pages, epoch, body, variant.encode);
    round_trip(**link, epoch);
    if (epoch > first) times.push_back(micros(Clock::now() - began));
  }
  const double count = measure.count;
  figures.near_cpu = (figures.near_cpu + cpu_micros(CLOCK_THREAD_CPUTIME_ID)) / count;
  figures.near_enters = static_cast<double>((*link)->stats().enters - enters) / count;
  figures.micros = measure.stream ? times[0] / count : median(times);
  link->reset();
  peer.join();
  figures.far_cpu = peer.cpu() / count;
  figures.far_enters = peer.enters() / count;
  return figures;
}

void report(const std::string& name, const std::vector<Variant>& variants,
            const std::vector<std::vector<Figures>>& runs) {
  std::printf("%-22s %-14s %9s %6s %9s %6s %9s %6s %8s %8s\n", name.c_str(), "variant", "us", "ratio", "cpu near",
              "ratio", "cpu far", "ratio", "calls n", "calls f");
  const auto of = [](const std::vector<Figures>& all, double Figures::*field) {
    std::vector<double> values;
    for (const Figures& one : all) values.push_back(one.*field);
    return median(values);
  };
  // Of each round against the first variant in the same round.
  const auto ratio = [&](size_t variant, double Figures::*field) {
    std::vector<double> values;
    for (size_t i = 0; i < runs[0].size(); ++i) values.push_back(runs[variant][i].*field / (runs[0][i].*field));
    return median(values);
  };
  for (size_t i = 0; i < variants.size(); ++i) {
    std::printf("%-22s %-14s %9.2f %6.3f %9.2f %6.3f %9.2f %6.3f %8.2f %8.2f\n", "", variants[i].name,
                of(runs[i], &Figures::micros), ratio(i, &Figures::micros), of(runs[i], &Figures::near_cpu),
                ratio(i, &Figures::near_cpu), of(runs[i], &Figures::far_cpu), ratio(i, &Figures::far_cpu),
                of(runs[i], &Figures::near_enters), of(runs[i], &Figures::far_enters));
  }
  std::fflush(stdout);
}

int run_all(int rounds, const std::string& filter, const std::vector<std::string>& only) {
  static const Variant all[] = {
    {"plain", {}},
    {"plain2", {}},
    {"coop", {.x = xCoop}},
    {"coopflag", {.x = xCoopFlag}},
    {"single", {.x = xSingle}},
    {"defer", {.x = xDefer}},
    {"files", {.x = xFiles}},
    {"ringfd", {.x = xRingFd}},
    {"early", {.x = xEarly}},
    {"waitall", {.x = xWaitall}},
    {"zc", {.x = xZc}},
    {"zcfixed", {.x = xZcFixed}},
    {"pollfirst", {.x = xPollFirst}},
    {"head", {.x = xHead}},
    {"huge", {.x = xHuge}},
    {"spin", {.x = xSpin}},
    {"recvall", {.x = xRecvAll}},
    {"send256", {.x = xSend256}},
    {"send1m", {.x = xSend1M}},
    {"piggy", {.x = xPiggy}},
    {"piggy+defer", {.x = xPiggy|xDefer}},
    {"flagwake", {.x = xFlagWake}},
    {"mtx", {.x = xMirrorTx}},
    {"mrx", {.x = xMirrorRx}},
    {"mtxrx", {.x = xMirrorTx|xMirrorRx}},
    {"encode", {}, 1},
    {"encodemtx", {.x = xMirrorTx}, 1},
    {"inplace", {.x = xMirrorTx}, 2},
    {"multi", {.x = xMulti}},
    {"multi+defer", {.x = xMulti | xDefer | xEarly}},
    {"buf1m", {.sockbuf = 1 << 20}},
    {"buf4m", {.sockbuf = 4 << 20}},
    {"rx2m", {.receive_buffer_bytes = (2u << 20) + 65536}},
    {"rx8m", {.receive_buffer_bytes = 8u << 20}},
    {"tx4m", {.send_queue_bytes = 4u << 20}},
    {"early+defer", {.x = xEarly | xDefer}},
    {"e+d+files+fd", {.x = xEarly | xDefer | xFiles | xRingFd}},
    {"e+coopf+files", {.x = xEarly | xCoopFlag | xFiles}},
    {"huge+head", {.x = xHuge | xHead}},
  };
  std::vector<Variant> variants;
  for (const Variant& one : all)
    if (only.empty() || std::find(only.begin(), only.end(), one.name) != only.end()) variants.push_back(one);
  const Measure measures[] = {
      {"commit_ack", 0, 3000, false},         {"paced_commit", 0, 500, false, 500}, {"paced_256k", 256u << 10, 300, false, 500},
      {"paced_1m", 1u << 20, 150, false, 500}, {"pages_64k", 64u << 10, 2000, false},
      {"pages_256k", 256u << 10, 1000, false}, {"pages_1m", 1u << 20, 300, false},
      {"stream_1m", 1u << 20, 1024, true},
      {"wake", 1, 20000, false}, {"wakebusy", 1, 20000, true},
  };
  for (const bool tcp : {true, false}) {
    for (const Measure& measure : measures) {
      const std::string name = std::string(tcp ? "tcp/" : "unix/") + measure.name;
      if (name.find(filter) == std::string::npos) continue;
      std::vector<std::vector<Figures>> runs(variants.size());
      for (int round = 0; round < rounds; ++round)
        for (size_t i = 0; i < variants.size(); ++i) {
          const size_t which = (i + round) % variants.size();
          runs[which].push_back(measure.body_bytes == 1 ? run_wake(measure, variants[which], tcp) : run(measure, variants[which], tcp));
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
  std::vector<std::string> only;
  for (int i = 3; i < argc; ++i) only.push_back(argv[i]);
  return remusd::ckpt::run_all(rounds < 1 ? 1 : rounds, argc > 2 ? argv[2] : "", only);
}
