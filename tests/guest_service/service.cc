// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The service in the test guest. Its state is in memory, so whatever it has answered it must still know after
// a failover; what it keeps on a disk it must know even after a crash. All numbers on the wire are
// little-endian.
//
//   UDP 7000  {u64 id}                        -> {u64 id, u64 counter}; every datagram adds 1 to the counter
//             {u64 id, u64 counter} x 1..64   -> the same, with the id that is remembered for each counter
//                                                (0: none); adds nothing. An audit of what was answered.
//   TCP 7001  {u32 length, bytes}             -> {u64 message number, u64 running hash}; see hash() below
//   UDP 7002  {u32 command, u32 argument}     -> {u64 pages dirtied, u64 spins, u64 uptime ns, u64 corrupt
//             0 read, 1 set dirty rate           pages, u64 this boot's number}. An end is answered first.
//             (pages/s), 2 reboot, 3 spin 0/1,
//             4 set of pages, 5 shuffled 0/1,
//             6 content (see dirtier.h),
//             7 power off, 8 panic
//   UDP 7003  as 7000, and the counter is the number of a record in a file on the disk, written and flushed
//             before the answer; an audit reads the disk. {u32} -> {u64 in order, u64 records}
//   UDP 7004  the same with a SQLite database: a committed row for each request
//   UDP 7005  {u32 0, u32 count, u32 every    -> {u64 count, u64 p50 ns, u64 mean ns} of so many flushed
//              us}                               writes to the disk, once all are done
//             {u32 pattern, u32 ms, u32 0}    -> {u64 transfers, u64 0, u64 0} (see disk_load.h)
//
// The last three only with a disk. Parameters come from the kernel's command line: remusd.dirty=PAGES_PER_S
// remusd.pages=N remusd.spin=0|1.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/guest_service/dirtier.h"
#include "tests/guest_service/disk_load.h"
#include "tests/guest_service/hash.h"
#include "tests/guest_service/ledger.h"

namespace remusd::guest_service {
namespace {

constexpr uint16_t kCountPort = 7000, kStreamPort = 7001, kLoadPort = 7002;
constexpr uint16_t kRecordsPort = 7003, kDatabasePort = 7004, kDiskLoadPort = 7005;
// Only the root file system on a disk has it.
constexpr const char* kDiskDirectory = "/data";
constexpr size_t kMaxAudit = 64;
constexpr uint64_t kRemembered = 1 << 20;  // Counters whose ids are kept.
constexpr uint32_t kMaxMessage = 1 << 16, kMostDiskLoad = 100'000;

struct Entry {
  uint64_t id, counter;
};

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

int open_socket(int type, uint16_t port) {
  const int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fail("bind");
  if (type == SOCK_STREAM && listen(fd, 16) != 0) fail("listen");
  return fd;
}

/// Answers each datagram with what `answer(data, size, reply)` leaves in reply, if anything.
template <typename Answer>
[[noreturn]] void serve_datagrams(int fd, Answer answer) {
  std::array<std::byte, 2048> data{};
  std::vector<std::byte> reply;
  for (;;) {
    sockaddr_in from{};
    socklen_t from_size = sizeof from;
    const ssize_t got =
        recvfrom(fd, data.data(), data.size(), 0, reinterpret_cast<sockaddr*>(&from), &from_size);
    if (got < 0) continue;
    reply.clear();
    answer(data.data(), static_cast<size_t>(got), &reply);
    if (reply.empty()) continue;
    sendto(fd, reply.data(), reply.size(), 0, reinterpret_cast<const sockaddr*>(&from), from_size);
  }
}

class Counting {
 public:
  Counting() : ids_(kRemembered) {}

  void answer(const std::byte* data, size_t size, std::vector<std::byte>* reply) {
    if (size == sizeof(uint64_t)) {
      Entry entry{.id = 0, .counter = ++counter_};
      std::memcpy(&entry.id, data, sizeof entry.id);
      ids_[entry.counter % kRemembered] = entry.id;
      append(entry, reply);
    } else if (size % sizeof(Entry) == 0 && size > 0 && size <= kMaxAudit * sizeof(Entry)) {
      for (size_t at = 0; at < size; at += sizeof(Entry)) {
        Entry entry{};
        std::memcpy(&entry, data + at, sizeof entry);
        const bool known = entry.counter <= counter_ && entry.counter + kRemembered > counter_;
        entry.id = known ? ids_[entry.counter % kRemembered] : 0;
        append(entry, reply);
      }
    }
  }

 private:
  static void append(const Entry& entry, std::vector<std::byte>* reply) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&entry);
    reply->insert(reply->end(), bytes, bytes + sizeof entry);
  }

  uint64_t counter_ = 0;
  std::vector<uint64_t> ids_;
};

/// Requests to a store on the disk. A request that fails has no answer.
void answer_ledger(Ledger* ledger, const std::byte* data, size_t size, std::vector<std::byte>* reply) {
  const auto append = [reply](const Entry& entry) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&entry);
    reply->insert(reply->end(), bytes, bytes + sizeof entry);
  };
  if (size == sizeof(uint32_t)) {
    const std::optional<uint64_t> entries = ledger->check();
    append({.id = entries ? 1U : 0U, .counter = entries.value_or(0)});
  } else if (size == sizeof(uint64_t)) {
    uint64_t id = 0;
    std::memcpy(&id, data, sizeof id);
    if (const std::optional<uint64_t> number = ledger->append(id)) append({.id = id, .counter = *number});
  } else if (size % sizeof(Entry) == 0 && size > 0 && size <= kMaxAudit * sizeof(Entry)) {
    for (size_t at = 0; at < size; at += sizeof(Entry)) {
      Entry entry{};
      std::memcpy(&entry, data + at, sizeof entry);
      entry.id = ledger->id_of(entry.counter);
      append(entry);
    }
  }
}

void answer_disk_load(const std::byte* data, size_t size, std::vector<std::byte>* reply) {
  std::array<uint32_t, 3> request{};
  if (size != sizeof request) return;
  std::memcpy(request.data(), data, size);
  const auto [what, much, every_us] = request;
  if (what > static_cast<uint32_t>(Pattern::write) || much > kMostDiskLoad) return;
  const std::string path = std::string(kDiskDirectory) + "/load";
  std::array<uint64_t, 3> answer{};
  if (what == 0) {
    const auto times = time_flushes(path, much, every_us);
    if (!times) return;
    answer = {times->count, times->p50_ns, times->mean_ns};
  } else {
    const auto done = transfer(path, static_cast<Pattern>(what), much);
    if (!done) return;
    answer[0] = *done;
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(answer.data());
  reply->assign(bytes, bytes + sizeof answer);
}

bool receive_all(int fd, void* data, size_t size) {
  return recv(fd, data, size, MSG_WAITALL) == static_cast<ssize_t>(size);
}

/// One connection. The hash runs over every byte in the order in which the service handled it: a message
/// with its length, then the reply to it (the reply carries the hash of all before it), and so on.
void serve_stream(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  uint64_t number = 0;
  uint64_t running = kHashStart;
  std::vector<std::byte> message;
  for (uint32_t length = 0; receive_all(fd, &length, sizeof length) && length <= kMaxMessage;) {
    message.resize(length);
    if (!receive_all(fd, message.data(), length)) break;
    running = hash(running, &length, sizeof length);
    running = hash(running, message.data(), length);
    const std::array<uint64_t, 2> reply = {++number, running};
    running = hash(running, reply.data(), sizeof reply);
    if (send(fd, reply.data(), sizeof reply, MSG_NOSIGNAL) != sizeof reply) break;
  }
  close(fd);
}

[[noreturn]] void accept_streams(int fd) {
  for (;;) {
    const int connection = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection >= 0) std::thread(serve_stream, connection).detach();
  }
}

/// The number after `name=` on the kernel's command line.
uint32_t parameter(std::string_view name, uint32_t fallback) {
  std::ifstream file("/proc/cmdline");
  for (std::string word; file >> word;) {
    if (word.size() > name.size() && word.starts_with(name) && word[name.size()] == '=') {
      return static_cast<uint32_t>(std::strtoul(word.c_str() + name.size() + 1, nullptr, 10));
    }
  }
  return fallback;
}

class Load {
 public:
  explicit Load(int fd) : fd_(fd), dirtier_(parameter("remusd.pages", 4096)) {
    dirtier_.set_rate(parameter("remusd.dirty", 0));
    spinner_.switch_on(parameter("remusd.spin", 0) != 0);
  }

  [[noreturn]] void run() {
    std::thread([this] { dirtier_.run(); }).detach();
    std::thread([this] { spinner_.run(); }).detach();
    serve_datagrams(fd_, [this](const std::byte* data, size_t size, std::vector<std::byte>* reply) {
      std::array<uint32_t, 2> request{};
      if (size != sizeof request) return;
      std::memcpy(request.data(), data, size);
      if (request[0] == 1) dirtier_.set_rate(request[1]);
      if (request[0] == 2 || request[0] == 7 || request[0] == 8) std::thread(end, request[0]).detach();
      if (request[0] == 3) spinner_.switch_on(request[1] != 0);
      if (request[0] == 4) dirtier_.set_pages(request[1]);
      if (request[0] == 5) dirtier_.set_shuffled(request[1] != 0);
      if (request[0] == 6 && request[1] <= 2) dirtier_.set_content(static_cast<Content>(request[1]));
      const std::array<uint64_t, 5> state = {dirtier_.dirtied(), spinner_.iterations(), uptime_ns(),
                                             dirtier_.corrupt(), boot_};
      const auto* bytes = reinterpret_cast<const std::byte*>(state.data());
      reply->assign(bytes, bytes + sizeof state);
    });
  }

 private:
  static void end(uint32_t how) {
    usleep(50'000);  // So that the reply can leave the guest's own queues.
    if (how == 2) reboot(RB_AUTOBOOT);
    if (how == 7) reboot(RB_POWER_OFF);
    std::ofstream("/proc/sysrq-trigger") << 'c';
  }

  static uint64_t random_number() {
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, 0) != sizeof number) std::abort();
    return number;
  }

  int fd_;
  const uint64_t boot_ = random_number();
  Dirtier dirtier_;
  Spinner spinner_;
};

}  // namespace
}  // namespace remusd::guest_service

int main() {
  using namespace remusd::guest_service;
  static Counting counting;
  const int count_fd = open_socket(SOCK_DGRAM, kCountPort);
  std::thread([count_fd] {
    serve_datagrams(count_fd, [](const std::byte* data, size_t size, std::vector<std::byte>* reply) {
      counting.answer(data, size, reply);
    });
  }).detach();
  const int stream_fd = open_socket(SOCK_STREAM, kStreamPort);
  std::thread([stream_fd] { accept_streams(stream_fd); }).detach();
  if (access(kDiskDirectory, W_OK) == 0) {
    const auto serve = [](uint16_t port, Ledger* ledger) {
      const int fd = open_socket(SOCK_DGRAM, port);
      std::thread([fd, ledger] {
        serve_datagrams(fd, [ledger](const std::byte* data, size_t size, std::vector<std::byte>* reply) {
          answer_ledger(ledger, data, size, reply);
        });
      }).detach();
    };
    static RecordFile records(std::string(kDiskDirectory) + "/records");
    static Database database(std::string(kDiskDirectory) + "/ledger.db");
    serve(kRecordsPort, &records);
    serve(kDatabasePort, &database);
    const int disk_load_fd = open_socket(SOCK_DGRAM, kDiskLoadPort);
    std::thread([disk_load_fd] { serve_datagrams(disk_load_fd, answer_disk_load); }).detach();
  }
  static Load load(open_socket(SOCK_DGRAM, kLoadPort));
  std::puts("remusd-guest ready");
  std::fflush(stdout);
  load.run();
}
