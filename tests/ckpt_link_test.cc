// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Links over socketpairs and TCP on the loopback. Nothing here sleeps: each wait has an event and a deadline.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <latch>
#include <string>
#include <thread>

#include "tests/ckpt_link_world.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;

std::unique_ptr<Link> adopt(ScopedFd socket, const LinkOptions& options = {}) {
  Result<std::unique_ptr<Link>> link = Link::adopt(std::move(socket), options);
  EXPECT_TRUE(link.ok()) << link.status().message();
  return std::move(*link);
}

Bytes body_of(size_t size, uint64_t seed) {
  Bytes body(size);
  for (size_t i = 0; i < size; ++i) body[i] = static_cast<std::byte>(seed * 31 + i * 7 + i / 256);
  return body;
}

void write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    ASSERT_GT(written, 0);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

/// Makes send, recv and poll in all their forms, and read and write on `socket`, fail with EXDEV in this
/// thread from now on. (The sanitizers' own pipes go on working.)
bool forbid_plain_io(int socket) {
  std::vector<sock_filter> program;
  const auto load = [&](size_t offset) {
    program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)));
  };
  const auto forbid = [&](std::initializer_list<long> calls) {
    load(offsetof(seccomp_data, nr));
    for (const long call : calls) {
      program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 1));
      program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV));
    }
  };
  forbid({SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_poll, SYS_ppoll,
          SYS_epoll_wait, SYS_epoll_pwait});
  load(offsetof(seccomp_data, args));
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(socket), 1, 0));
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  forbid({SYS_read, SYS_write, SYS_readv, SYS_writev});
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

enum class Transport { unix_socket, tcp };

class LinkTest : public ::testing::TestWithParam<Transport> {
 protected:
  static std::pair<ScopedFd, ScopedFd> sockets() {
    return GetParam() == Transport::tcp ? tcp_pair() : unix_pair();
  }
};

TEST_P(LinkTest, FramesOfAllSizesArriveWholeAndInOrder) {
  auto [a, b] = sockets();
  const auto size_of = [](uint64_t i) {
    return i % 50 == 0 ? size_t{kMaxBodyBytes} : (i * i * 977) % 20'000;
  };
  constexpr uint64_t kFrames = 400;
  std::thread sender([&, &a = a] {
    std::unique_ptr<Link> link = adopt(std::move(a), {.send_queue_bytes = 3u << 20});
    for (uint64_t i = 0; i < kFrames; ++i) {
      const Bytes body = body_of(size_of(i), i);
      ASSERT_TRUE(serve(*link, nullptr, [&] { return link->send_space() >= body.size() + 40; }).ok());
      ASSERT_TRUE(link->append(FrameType::pages, i, body).ok());
    }
    ASSERT_TRUE(serve(*link, nullptr, [&] { return link->drained(); }).ok());
    EXPECT_EQ(link->stats().sent_frames, kFrames);
  });
  std::unique_ptr<Link> link = adopt(std::move(b));
  std::vector<Received> frames;
  EXPECT_TRUE(serve(*link, &frames, [&] { return frames.size() == kFrames; }).ok());
  sender.join();
  ASSERT_EQ(frames.size(), kFrames);
  for (uint64_t i = 0; i < kFrames; ++i) {
    ASSERT_EQ(frames[i].epoch, i);
    ASSERT_EQ(frames[i].body, body_of(size_of(i), i)) << i;
  }
  // The sender is gone: what comes now is the end.
  EXPECT_EQ(serve(*link, nullptr, [] { return false; }).code(), Code::unavailable);
}

TEST_P(LinkTest, BothDirectionsAtOnceDoNotBlockEachOther) {
  auto [a, b] = sockets();
  constexpr uint64_t kRounds = 200;
  std::latch both(2);  // Neither closes before the other knows that all has left.
  const auto run = [&both](ScopedFd socket, uint64_t* received) {
    std::unique_ptr<Link> link = adopt(std::move(socket), {.send_queue_bytes = 256u << 10});
    uint64_t sent = 0;
    std::vector<Received> frames;
    const Bytes body = body_of(100'000, 1);
    EXPECT_TRUE(serve(*link, &frames, [&] {
                  while (sent < kRounds && link->append(FrameType::pages, sent, body).ok()) ++sent;
                  return sent == kRounds && frames.size() == kRounds && link->drained();
                }).ok());
    both.arrive_and_wait();
    *received = frames.size();
  };
  uint64_t received_a = 0, received_b = 0;
  std::thread other([&, &a = a] { run(std::move(a), &received_a); });
  run(std::move(b), &received_b);
  other.join();
  EXPECT_EQ(received_a, kRounds);
  EXPECT_EQ(received_b, kRounds);
}

TEST_P(LinkTest, AFullQueueRefusesAndNeverGrows) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(a), {.send_queue_bytes = 1u << 20});
  const Bytes body = body_of(64 << 10, 1);
  uint64_t queued = 0;
  Status status;
  // The peer does not read: its buffers fill, then the queue.
  for (int i = 0; i < 100'000 && status.ok(); ++i) {
    status = link->append(FrameType::pages, 1, body);
    if (status.ok()) {
      ++queued;
    } else if (link->wait(Clock::now() + 50ms, [](const FrameView&) { return Status(); }).ok() &&
               link->send_space() >= body.size() + sizeof(FrameHeader)) {
      status = Status();
    }
  }
  EXPECT_EQ(status.code(), Code::exhausted);
  EXPECT_GE(link->stats().send_queue_full, 1u);
  EXPECT_FALSE(link->drained());

  // It reads again: everything that was queued arrives, nothing more.
  uint64_t received = 0;
  std::unique_ptr<Link> peer = adopt(std::move(b));  // Stays open until this side knows that all has left.
  std::thread reader([&] {
    std::vector<Received> frames;
    EXPECT_TRUE(serve(*peer, &frames, [&] { return frames.size() == queued; }).ok());
    received = frames.size();
  });
  EXPECT_TRUE(serve(*link, nullptr, [&] { return link->drained(); }).ok());
  reader.join();
  EXPECT_EQ(received, queued);
  EXPECT_EQ(link->send_space(), 1u << 20);
}

// Fault 11.
TEST_P(LinkTest, APeerThatTricklesBytesIsUnderstood) {
  auto [a, b] = sockets();
  FrameWriter writer;
  Bytes stream;
  for (uint64_t i = 0; i < 20; ++i) writer.append(FrameType::device, i, body_of(i * 13, i), &stream);
  std::unique_ptr<Link> link = adopt(std::move(b));
  std::vector<Received> frames;
  for (const std::byte& byte : stream) {
    write_all(a.get(), {&byte, 1});
    ASSERT_TRUE(link->wait(Clock::now(),
                           [&](const FrameView& frame) {
                             frames.push_back({frame.type(), frame.header.epoch, {}});
                             return Status();
                           })
                    .ok());
  }
  ASSERT_TRUE(serve(*link, &frames, [&] { return frames.size() == 20; }).ok());
  EXPECT_EQ(link->stats().received_bytes, stream.size());
}

TEST_P(LinkTest, APeerThatClosesIsToldAfterItsLastFrame) {
  for (const bool cut : {false, true}) {
    auto [a, b] = sockets();
    FrameWriter writer;
    Bytes stream;
    writer.append(FrameType::device, 1, body_of(1000, 1), &stream);
    writer.append(FrameType::device, 2, body_of(1000, 2), &stream);
    if (cut) stream.resize(stream.size() - 1);
    write_all(a.get(), stream);
    a.reset();
    std::unique_ptr<Link> link = adopt(std::move(b));
    std::vector<Received> frames;
    const Status status = serve(*link, &frames, [] { return false; });
    EXPECT_EQ(frames.size(), cut ? 1u : 2u);
    EXPECT_EQ(status.code(), Code::unavailable);
    EXPECT_THAT(status.message(), HasSubstr(cut ? "in the middle of a frame" : "closed the connection"));
    EXPECT_FALSE(link->open());
    EXPECT_EQ(link->append(FrameType::device, 3, {}).code(), Code::unavailable);
    EXPECT_EQ(link->wait(Clock::now() + kPatience, [](const FrameView&) { return Status(); }).code(),
              Code::unavailable);
  }
}

TEST_P(LinkTest, WhatThePeerSaidBeforeItWentIsHeardThoughSendingFails) {
  auto [a, b] = sockets();
  FrameWriter writer;
  Bytes stream;
  writer.append(FrameType::refuse, 0, body_of(50, 1), &stream);
  write_all(a.get(), stream);
  a.reset();
  std::unique_ptr<Link> link = adopt(std::move(b));
  std::vector<Received> frames;
  Status status;
  for (int i = 0; i < 1000 && status.ok(); ++i) {
    (void)link->append(FrameType::heartbeat, 0, body_of(16, 1));
    status = link->wait(Clock::now() + 10ms, [&](const FrameView& frame) {
      frames.push_back({frame.type(), 0, {}});
      return Status();
    });
  }
  EXPECT_EQ(status.code(), Code::unavailable);
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].type, FrameType::refuse);
}

TEST_P(LinkTest, NonsenseClosesTheLink) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(b));
  write_all(a.get(), std::as_bytes(std::span(std::string_view("GET / HTTP/1.1\r\n"))));
  EXPECT_EQ(serve(*link, nullptr, [] { return false; }).code(), Code::corrupt);
  // The stranger sees the end.
  char byte;
  EXPECT_LE(::recv(a.get(), &byte, 1, 0), 0);
}

TEST_P(LinkTest, AWakeFromAnotherThreadEndsAWait) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(b));
  std::atomic<bool> told = false;
  std::thread other([&] {
    told = true;
    link->wake();
  });
  const Time start = Clock::now();
  EXPECT_TRUE(link->wait(start + kPatience, [](const FrameView&) { return Status(); }).ok());
  EXPECT_LT(Clock::now() - start, kPatience);
  EXPECT_TRUE(told);
  other.join();
  // One that came before the wait counts, too, and only once.
  link->wake();
  EXPECT_TRUE(link->wait(start + 2 * kPatience, [](const FrameView&) { return Status(); }).ok());
  EXPECT_LT(Clock::now() - start, kPatience);
  const Time before = Clock::now();
  EXPECT_TRUE(link->wait(before + 20ms, [](const FrameView&) { return Status(); }).ok());
  EXPECT_GE(Clock::now() - before, 20ms);
}

TEST_P(LinkTest, AFrameThatHasArrivedIsDeliveredThoughTheDeadlineHasPassed) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(b));
  ASSERT_TRUE(link->wait(Clock::now(), [](const FrameView&) { return Status(); }).ok());
  FrameWriter writer;
  for (int round = 0; round < 100; ++round) {
    Bytes stream;
    for (int i = 0; i < 3; ++i) writer.append(FrameType::heartbeat, 0, body_of(16, 1), &stream);
    write_all(a.get(), stream);
    int frames = 0;
    for (const Time deadline : {Time::min(), Time{}, Clock::now() - 1h}) {
      if (frames > 0) break;
      ASSERT_TRUE(link->wait(deadline,
                             [&](const FrameView&) {
                               ++frames;
                               return Status();
                             })
                      .ok());
      ASSERT_EQ(frames, 3) << "all of them, at the first look";
    }
  }
}

TEST_P(LinkTest, ABusySenderHearsItsPeerAtEveryWait) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(b));
  FrameWriter writer;
  Bytes sink(1 << 20);
  for (int round = 0; round < 50; ++round) {
    Bytes stream;
    writer.append(FrameType::heartbeat, 0, body_of(16, 1), &stream);
    write_all(a.get(), stream);
    // Large enough to be sent by append() itself: the wait begins with progress of its own.
    ASSERT_TRUE(link->append(FrameType::pages, 1, body_of(80 << 10, 1)).ok());
    link->wake();
    int frames = 0;
    ASSERT_TRUE(link->wait(Clock::now() + kPatience,
                           [&](const FrameView&) {
                             ++frames;
                             return Status();
                           })
                    .ok());
    ASSERT_EQ(frames, 1) << round;
    while (::recv(a.get(), sink.data(), sink.size(), MSG_DONTWAIT) > 0) {
    }
  }
}

// The data path is io_uring's alone: with the plain calls forbidden to the thread a link works as before.
TEST_P(LinkTest, NoReadWriteSendOrRecvIsCalled) {
  auto [a, b] = sockets();
  Status status;
  uint64_t echoed = 0;
  bool forbidden = false;
  std::thread echo([&, &b = b] {
    std::unique_ptr<Link> link = adopt(std::move(b));
    while (echoed < 20) {
      status = link->wait(Clock::now() + kPatience, [&](const FrameView& frame) {
        ++echoed;
        return link->append(FrameType::ack, frame.header.epoch, frame.body);
      });
      if (!status.ok()) return;
    }
    while (status.ok() && !link->drained())
      status = link->wait(Clock::now() + kPatience, [](const FrameView&) { return Status(); });
  });
  std::thread driver([&, &a = a] {
    const int fd = a.get();
    std::unique_ptr<Link> link = adopt(std::move(a));
    forbidden = forbid_plain_io(fd) && ::write(fd, "", 0) < 0 && errno == EXDEV && ::send(fd, "", 0, 0) < 0 &&
                errno == EXDEV;
    std::vector<Received> frames;
    for (uint64_t i = 1; i <= 20; ++i) {
      if (!link->append(FrameType::pages, i, body_of(100'000, i)).ok()) return;
      if (!serve(*link, &frames, [&] { return frames.size() == i; }).ok()) return;
    }
  });
  driver.join();
  echo.join();
  EXPECT_TRUE(forbidden);
  EXPECT_EQ(echoed, 20u);
  EXPECT_TRUE(status.ok() || status.code() == Code::unavailable) << status.message();
}

TEST_P(LinkTest, AFarDeadlineIsNoProblem) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(b));
  link->wake();
  EXPECT_TRUE(link->wait(Time::max(), [](const FrameView&) { return Status(); }).ok());
}

TEST_P(LinkTest, AHandlerMayAnswerAndMayEndTheLink) {
  auto [a, b] = sockets();
  std::thread echo([&b = b] {
    std::unique_ptr<Link> link = adopt(std::move(b));
    int frames = 0;
    Status status;
    while (status.ok()) {
      status = link->wait(Clock::now() + kPatience, [&](const FrameView& frame) {
        if (++frames == 4) return Status(Code::unsafe, "enough");
        return link->append(FrameType::ack, frame.header.epoch, frame.body);
      });
    }
    EXPECT_EQ(status.code(), Code::unsafe);
    EXPECT_EQ(link->close_reason().message(), "enough");
  });
  std::unique_ptr<Link> link = adopt(std::move(a));
  std::vector<Received> frames;
  for (uint64_t i = 1; i <= 3; ++i) {
    ASSERT_TRUE(link->append(FrameType::commit, i, body_of(40, i)).ok());
    ASSERT_TRUE(serve(*link, &frames, [&] { return frames.size() == i; }).ok());
  }
  ASSERT_TRUE(link->append(FrameType::commit, 4, {}).ok());
  EXPECT_EQ(serve(*link, &frames, [] { return false; }).code(), Code::unavailable);
  echo.join();
}

TEST_P(LinkTest, ALinkMayBeDestroyedWithEverythingUnderWay) {
  for (int round = 0; round < 50; ++round) {
    auto [a, b] = sockets();
    std::unique_ptr<Link> link = adopt(std::move(a), {.send_queue_bytes = 8u << 20});
    const Bytes body = body_of(1 << 20, 1);
    while (link->append(FrameType::pages, 1, body).ok()) {
    }
    ASSERT_TRUE(link->wait(Clock::now(), [](const FrameView&) { return Status(); }).ok());
    if (round % 2 == 0) link->close({});
    link.reset();
  }
}

TEST_P(LinkTest, OperationsOutliveTheThreadThatStartedThem) {
  auto [a, b] = sockets();
  std::unique_ptr<Link> link = adopt(std::move(b));
  // The kernel cancels the operations of a thread that ends.
  std::thread([&] { (void)link->wait(Clock::now(), [](const FrameView&) { return Status(); }); }).join();
  FrameWriter writer;
  Bytes stream;
  writer.append(FrameType::heartbeat, 0, body_of(16, 1), &stream);
  write_all(a.get(), stream);
  std::vector<Received> frames;
  EXPECT_TRUE(serve(*link, &frames, [&] { return !frames.empty(); }).ok());
}

INSTANTIATE_TEST_SUITE_P(Transports, LinkTest, ::testing::Values(Transport::unix_socket, Transport::tcp),
                         [](const auto& test) { return test.param == Transport::tcp ? "Tcp" : "Unix"; });

TEST(LinkAdoptTest, TcpGetsNoDelayAndANonBlockingSocketIsTaken) {
  auto [a, b] = tcp_pair();
  const int fd = a.get();
  ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
  std::unique_ptr<Link> link = adopt(std::move(a));
  int on = 0;
  socklen_t size = sizeof on;
  ASSERT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, &size), 0);
  EXPECT_NE(on, 0);
  // A waiting receive, not a spinning one.
  rusage before{}, after{};
  ::getrusage(RUSAGE_THREAD, &before);
  EXPECT_TRUE(link->wait(Clock::now() + 100ms, [](const FrameView&) { return Status(); }).ok());
  ::getrusage(RUSAGE_THREAD, &after);
  EXPECT_LT(after.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_utime.tv_usec -
                before.ru_stime.tv_usec + 1'000'000 * (after.ru_utime.tv_sec - before.ru_utime.tv_sec),
            50'000);
}

TEST(LinkAdoptTest, BytesReadBeforeAreNotLost) {
  auto [a, b] = unix_pair();
  FrameWriter writer;
  Bytes stream;
  writer.append(FrameType::hello, 0, body_of(100, 1), &stream);
  writer.append(FrameType::heartbeat, 0, body_of(16, 1), &stream);
  write_all(a.get(), std::span(stream).subspan(150));
  Result<std::unique_ptr<Link>> link = Link::adopt(std::move(b), {}, std::span(stream).first(150));
  ASSERT_TRUE(link.ok());
  std::vector<Received> frames;
  EXPECT_TRUE(serve(**link, &frames, [&] { return frames.size() == 2; }).ok());
}

TEST(LinkAdoptTest, BuffersThatCannotHoldAFrameAreRefused) {
  auto [a, b] = unix_pair();
  EXPECT_EQ(Link::adopt(std::move(a), {.receive_buffer_bytes = 1u << 20}).status().code(), Code::invalid);
  EXPECT_EQ(Link::adopt(std::move(b), {.send_queue_bytes = 1}).status().code(), Code::invalid);
}

TEST(LinkAdoptTest, AFrameLargerThanTheQueueIsInvalidNotExhausted) {
  auto [a, b] = unix_pair();
  std::unique_ptr<Link> link = adopt(std::move(a), {.send_queue_bytes = 64u << 10});
  EXPECT_EQ(link->append(FrameType::pages, 1, body_of(64 << 10, 1)).code(), Code::invalid);
}

TEST(LinkCloseTest, AResetPeerIsABrokenConnection) {
  auto [a, b] = tcp_pair();
  std::unique_ptr<Link> link = adopt(std::move(b));
  const linger now{1, 0};
  ASSERT_EQ(::setsockopt(a.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now), 0);
  a.reset();
  const Status status = serve(*link, nullptr, [] { return false; });
  EXPECT_EQ(status.code(), Code::unavailable);
  EXPECT_THAT(status.message(), HasSubstr("reset"));
}

TEST(LinkCloseTest, TheFirstReasonStays) {
  auto [a, b] = unix_pair();
  std::unique_ptr<Link> link = adopt(std::move(b));
  link->close({Code::unsafe, "first"});
  link->close({Code::io, "second"});
  EXPECT_EQ(link->close_reason().message(), "first");
  EXPECT_EQ(link->send_space(), 0u);
  link->wake();
}

TEST(ConnectTest, UnixPathsAreReached) {
  const std::string path = ::testing::TempDir() + "link_" + std::to_string(::getpid());
  ScopedFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  EXPECT_TRUE(connect_to("unix:" + path, 5s).ok());
  ::unlink(path.c_str());
  EXPECT_EQ(connect_to("unix:" + path, 5s).status().code(), Code::unavailable);
}

TEST(ConnectTest, NobodyListeningIsUnavailable) {
  Listener listener;
  listener.socket.reset();
  const Status status = connect_to(listener.address, 5s).status();
  EXPECT_EQ(status.code(), Code::unavailable);
  EXPECT_THAT(status.message(), HasSubstr("connect to " + listener.address));
}

TEST(ConnectTest, APeerThatDoesNotAnswerTimesOut) {
  // A listener whose queue is full drops what comes.
  Listener listener;
  ASSERT_EQ(::listen(listener.socket.get(), 0), 0);
  std::vector<ScopedFd> held;
  Status status;
  for (int i = 0; i < 10 && status.ok(); ++i) {
    Result<ScopedFd> socket = connect_to(listener.address, 200ms);
    status = socket.status();
    if (socket.ok()) held.push_back(std::move(*socket));
  }
  EXPECT_EQ(status.code(), Code::timed_out) << status.message();
}

TEST(ConnectTest, WrongAddressesAreInvalid) {
  for (const char* address : {"", "host", ":1", "host:", "host:0", "host:65536", "host:http", "::1:80",
                              "[::1]", "[]:80", "[::1:80", "unix:"}) {
    EXPECT_EQ(connect_to(address, 1s).status().code(), Code::invalid) << address;
  }
  EXPECT_EQ(connect_to("unix:" + std::string(200, 'x'), 1s).status().code(), Code::invalid);
}

TEST(ConnectTest, BracketsHoldAnIpv6Address) {
  // Nothing listens on port 1; without IPv6 the failure is another one, but never of the address' form.
  EXPECT_NE(connect_to("[::1]:1", 1s).status().code(), Code::invalid);
}

}  // namespace
}  // namespace remusd::ckpt
