// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The QMP client against peers that stall, close, talk nonsense or do not end their lines.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "guest/qemu/qmp.h"

namespace remusd::guest::qemu {
namespace {

using namespace std::chrono_literals;
using ::testing::HasSubstr;

constexpr std::string_view kGreeting = R"({"QMP": {"version": {}, "capabilities": []}})";
constexpr std::string_view kOk = R"({"return": {}})";

/// Serves one connection with a script on a thread.
class Server {
 public:
  using Script = std::function<void(Server&)>;
  explicit Server(Script script)
      : path_("/tmp/remusd-qmp-" + std::to_string(::getpid()) + "-" + std::to_string(++number)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    thread_ = std::thread([this, script = std::move(script)] {
      client_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      script(*this);
    });
  }
  ~Server() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
    ::unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }

  void say(std::string_view text) { raw(std::string(text) + "\r\n"); }
  void raw(const std::string& bytes) {
    size_t at = 0;
    while (at < bytes.size()) {
      const ssize_t sent = ::send(client_.get(), bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent <= 0) return;
      at += static_cast<size_t>(sent);
    }
  }
  /// One read; empty when the client has gone.
  std::string hear(int* fd = nullptr) {
    char bytes[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    iovec part{bytes, sizeof(bytes)};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = ::recvmsg(client_.get(), &message, MSG_CMSG_CLOEXEC);
    if (got > 0 && CMSG_FIRSTHDR(&message) != nullptr && fd != nullptr) {
      std::memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    }
    return got > 0 ? std::string(bytes, static_cast<size_t>(got)) : std::string();
  }
  void welcome() {
    say(kGreeting);
    hear();
    say(kOk);
  }
  void close() { client_.reset(); }
  void until_gone() {
    while (!hear().empty()) {
    }
  }

 private:
  static inline int number = 0;
  std::string path_;
  ScopedFd listener_, client_;
  std::thread thread_;
};

std::unique_ptr<Qmp> connected(Server& server, Duration timeout = 10s) {
  auto qmp = Qmp::connect(server.path(), timeout, 10s);
  EXPECT_TRUE(qmp.ok()) << qmp.status().message();
  return qmp.ok() ? *std::move(qmp) : nullptr;
}

constexpr std::string_view kStopped = R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})";

/// A pipe as QEMU and remusd share one.
struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    out.reset(ends[0]);
    in.reset(ends[1]);
  }
  ScopedFd out, in;
};

TEST(Qmp, AStopIsAnEventOrBytesOnThePipe) {
  Pipe pipe;
  Server server([&](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.say(kStopped);
    peer.say(kOk);
    peer.hear();
    EXPECT_EQ(::write(pipe.in.get(), "x", 1), 1);
    peer.until_gone();
  });
  const auto qmp = connected(server);
  ASSERT_TRUE(qmp->write(R"({"execute":"save"})").ok());
  EXPECT_TRUE(qmp->await_stop(pipe.out.get()).ok());
  EXPECT_EQ(qmp->take_stops(), 1);
  EXPECT_TRUE(qmp->await_ok().ok());
  // A guest that stood already says nothing of stopping.
  ASSERT_TRUE(qmp->write(R"({"execute":"save"})").ok());
  EXPECT_TRUE(qmp->await_stop(pipe.out.get()).ok());
  EXPECT_EQ(qmp->take_stops(), 0);
}

TEST(Qmp, AnAnswerBeforeTheStopIsAFailureAndTheClientStaysUsable) {
  Pipe pipe;
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.say(R"({"error": {"class": "GenericError", "desc": "no such pipe"}})");
    peer.hear();
    peer.say(kOk);
    peer.hear();
    peer.say(kOk);
    peer.until_gone();
  });
  const auto qmp = connected(server);
  ASSERT_TRUE(qmp->write("1").ok());
  EXPECT_THAT(qmp->await_stop(pipe.out.get()).message(), HasSubstr("no such pipe"));
  ASSERT_TRUE(qmp->write("2").ok());
  EXPECT_THAT(qmp->await_stop(pipe.out.get()).message(), HasSubstr("without stopping"));
  ASSERT_TRUE(qmp->write("3").ok());
  EXPECT_TRUE(qmp->await_ok().ok());
  EXPECT_TRUE(qmp->broken().ok());
}

TEST(Qmp, TakesFromThePipeUntilTheAnswerComes) {
  Pipe pipe;
  std::atomic<int> taken = 0;
  Server server([&](Server& peer) {
    peer.welcome();
    peer.hear();
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(::write(pipe.in.get(), "x", 1), 1);
      while (taken <= i) std::this_thread::yield();
    }
    peer.say(kStopped);
    peer.say(kOk);
    peer.until_gone();
  });
  const auto qmp = connected(server);
  ASSERT_TRUE(qmp->write("1").ok());
  const auto take = [&] {
    char byte = 0;
    EXPECT_EQ(::read(pipe.out.get(), &byte, 1), 1);
    ++taken;
    return Status();
  };
  EXPECT_TRUE(qmp->await_ok(pipe.out.get(), take).ok());
  EXPECT_EQ(taken, 3);
  EXPECT_EQ(qmp->take_stops(), 1);
}

TEST(Qmp, AStopThatDoesNotComeIsAFailure) {
  Pipe pipe;
  Server server([](Server& peer) {
    peer.welcome();
    peer.until_gone();
  });
  const auto qmp = connected(server, 50ms);
  ASSERT_TRUE(qmp->write("1").ok());
  EXPECT_EQ(qmp->await_stop(pipe.out.get()).code(), Code::timed_out);
  EXPECT_EQ(qmp->broken().code(), Code::timed_out);
}

TEST(Qmp, AnswersComeInOrderWithEventsBetween) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.say(R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"})");
    peer.say(kOk);
    peer.raw(R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESET", "data": {"re)");
    peer.raw("ason\": \"guest-reset\"}}\r\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n");
    peer.say(R"({"return": {"a": 1}})");
    peer.until_gone();
  });
  const auto qmp = connected(server);
  ASSERT_TRUE(qmp->write(R"({"execute":"stop"}{"execute":"x"}{"execute":"y"})").ok());
  EXPECT_TRUE(qmp->await_ok().ok());
  const Status refused = qmp->await_ok();
  EXPECT_EQ(refused.code(), Code::io);
  EXPECT_THAT(refused.message(), HasSubstr("no"));
  EXPECT_TRUE(qmp->await_ok().ok());
  const auto events = qmp->take_events();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].name, "RESET");
  EXPECT_EQ(events[0].data["reason"], "guest-reset");
}

TEST(Qmp, ADescriptorTravelsWithItsCommand) {
  std::atomic<int> came{-1};
  Server server([&came](Server& peer) {
    peer.welcome();
    int fd = -1;
    peer.hear(&fd);
    came = fd;
    peer.say(R"({"return": {"fdset-id": 3, "fd": 9}})");
    peer.until_gone();
  });
  const auto qmp = connected(server);
  const ScopedFd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto answer = qmp->call("add-fd", nullptr, file.get());
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ((*answer)["fdset-id"], 3);
  EXPECT_GE(came.load(), 0);
  ::close(came);
}

TEST(Qmp, AStallEndsAtTheDeadlineAndTheOrderCountsAsLost) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.until_gone();
  });
  const auto qmp = connected(server, 50ms);
  EXPECT_EQ(qmp->call("stop").status().code(), Code::timed_out);
  EXPECT_EQ(qmp->call("cont").status().code(), Code::timed_out);
}

TEST(Qmp, APeerThatNeverGreetsIsGivenUp) {
  Server server([](Server& peer) { peer.until_gone(); });
  EXPECT_EQ(Qmp::connect(server.path(), 1s, 50ms).status().code(), Code::timed_out);
}

TEST(Qmp, AClosedMonitorIsUnavailable) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.close();
  });
  const auto qmp = connected(server);
  EXPECT_EQ(qmp->call("stop").status().code(), Code::unavailable);
  EXPECT_EQ(qmp->write("x").code(), Code::unavailable);
}

TEST(Qmp, NonsenseIsCorrupt) {
  for (const char* nonsense :
       {"hello", "{", "[]", "{}", "{\"error\": 1}", "{\"event\": 1}", "\xff\xfe", "null", "{\"return\"}"}) {
    Server server([nonsense](Server& peer) {
      peer.welcome();
      peer.hear();
      peer.say(nonsense);
      peer.until_gone();
    });
    const auto qmp = connected(server);
    EXPECT_EQ(qmp->call("stop").status().code(), Code::corrupt) << nonsense;
  }
}

TEST(Qmp, AnAnswerThatNestsTooDeepIsCorrupt) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.say(R"({"event": "RESET", "data": )" + std::string(100000, '[') + std::string(100000, ']') + "}");
    peer.until_gone();
  });
  EXPECT_EQ(connected(server)->call("stop").status().code(), Code::corrupt);
}

TEST(Qmp, AStrangersGreetingIsCorrupt) {
  Server server([](Server& peer) {
    peer.say("220 mail.example ESMTP");
    peer.until_gone();
  });
  EXPECT_EQ(Qmp::connect(server.path(), 1s, 10s).status().code(), Code::corrupt);
}

TEST(Qmp, ALineWithoutEndIsCorruptAtTheBound) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.raw("{\"return\": \"" + std::string(Qmp::kMaxLineBytes + 1, 'x'));
    peer.until_gone();
  });
  const auto qmp = connected(server);
  EXPECT_EQ(qmp->call("stop").status().code(), Code::corrupt);
}

TEST(Qmp, TheEventQueueIsBoundedAndKeepsTheNewest) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    for (size_t i = 0; i < Qmp::kMaxEvents + 10; ++i) {
      peer.say(R"({"event": "RESET", "data": {"n": )" + std::to_string(i) + "}}");
    }
    peer.say(kOk);
    peer.until_gone();
  });
  const auto qmp = connected(server);
  ASSERT_TRUE(qmp->call("x").ok());
  const auto events = qmp->take_events();
  ASSERT_EQ(events.size(), Qmp::kMaxEvents);
  EXPECT_EQ(events.back().data["n"], Qmp::kMaxEvents + 9);
}

TEST(Qmp, AWatchedEventIsFoundWhetherItCameBeforeOrAfterTheAnswer) {
  Server server([](Server& peer) {
    peer.welcome();
    peer.hear();
    peer.say(R"({"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"})");
    peer.say(kOk);
    peer.say(R"({"timestamp": {"seconds": 1, "microseconds": 3}, "event": "RESUME"})");
    peer.until_gone();
  });
  const auto qmp = connected(server);
  qmp->watch("RESUME");
  ASSERT_TRUE(qmp->call("x").ok());
  EXPECT_TRUE(qmp->await_watched(Clock::now() + 10s).ok());
  EXPECT_TRUE(qmp->await_watched(Clock::now() + 10s).ok());
  EXPECT_EQ(qmp->await_watched(Clock::now() + 20ms).status().code(), Code::timed_out);
}

TEST(Qmp, NobodyListeningIsUnavailableOrNotFound) {
  EXPECT_EQ(Qmp::connect("/tmp/remusd-no-such-socket", 1s, 1s).status().code(), Code::not_found);
  EXPECT_EQ(Qmp::connect(std::string(200, 'x'), 1s, 1s).status().code(), Code::invalid);
}

}  // namespace
}  // namespace remusd::guest::qemu
