// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Links with TLS over socketpairs: frames go through it as they do without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>
#include <thread>

#include "tests/ckpt_link_world.h"
#include "tests/ckpt_tls_keys.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;
using Bytes = std::vector<std::byte>;

class TlsLinkTest : public ::testing::Test {
 protected:
  std::unique_ptr<Link> connecting(ScopedFd socket, const LinkOptions& options = {}, uint64_t records = 0) {
    auto session = a_->connect("b");
    EXPECT_TRUE(session.ok()) << session.status().message();
    if (records > 0) (*session)->set_records_per_key(records);
    return *Link::adopt(std::move(socket), options, *std::move(session));
  }
  std::unique_ptr<Link> accepting(ScopedFd socket, const LinkOptions& options = {}, uint64_t records = 0) {
    auto session = b_->accept();
    EXPECT_TRUE(session.ok()) << session.status().message();
    if (records > 0) (*session)->set_records_per_key(records);
    return *Link::adopt(std::move(socket), options, *std::move(session));
  }
  /// Both, with the handshake done.
  std::pair<std::unique_ptr<Link>, std::unique_ptr<Link>> links(const LinkOptions& options = {}) {
    auto [a, b] = unix_pair();
    auto near = connecting(std::move(a), options), far = accepting(std::move(b), options);
    while (near->open() && far->open() && !(near->secured() && far->secured())) {
      (void)near->wait(Clock::now(), [](const FrameView&) { return Status(); });
      (void)far->wait(Clock::now(), [](const FrameView&) { return Status(); });
    }
    EXPECT_TRUE(near->open()) << near->close_reason().message();
    EXPECT_TRUE(far->open()) << far->close_reason().message();
    return {std::move(near), std::move(far)};
  }

  TestKeys keys_;
  std::shared_ptr<TlsContext> a_ = keys_.node("a"), b_ = keys_.node("b");
};

TEST_F(TlsLinkTest, BothSidesKnowEachOther) {
  auto [near, far] = links();
  EXPECT_EQ(near->peer_node(), "b");
  EXPECT_EQ(far->peer_node(), "a");
}

TEST_F(TlsLinkTest, NothingIsTakenBeforeTheHandshakeIsDone) {
  auto [a, b] = unix_pair();
  auto near = connecting(std::move(a));
  EXPECT_FALSE(near->secured());
  EXPECT_EQ(near->send_space(), 0u);
  EXPECT_EQ(near->append(FrameType::hello, 0, body_of(10, 1)).code(), Code::exhausted);
  auto far = accepting(std::move(b));
  std::thread other([&far = far] {
    (void)serve(*far, nullptr, [&] { return far->secured(); });
    (void)serve(*far, nullptr, [&] { return far->drained(); });
  });
  EXPECT_TRUE(serve(*near, nullptr, [&] { return near->secured() && near->drained(); }).ok());
  other.join();
  EXPECT_EQ(near->send_space(), LinkOptions().send_queue_bytes);
  EXPECT_TRUE(near->append(FrameType::hello, 0, body_of(10, 1)).ok());
}

TEST_F(TlsLinkTest, FramesOfAllSizesArriveWholeAndInOrderThroughChangesOfKeys) {
  for (const uint64_t records : {0, 3}) {
    SCOPED_TRACE("new keys after " + std::to_string(records) + " records");
    auto [a, b] = unix_pair();
    const auto size_of = [](uint64_t i) {
      if (i % 50 == 0) return size_t{kMaxBodyBytes};
      if (i % 10 == 0)
        return kTlsRecordBytes - sizeof(FrameHeader) + i / 10 % 3 - 1;  // around a whole record
      return static_cast<size_t>((i * i * 977) % 40'000);
    };
    constexpr uint64_t kFrames = 400;
    std::thread sender([&, &a = a] {
      auto link = connecting(std::move(a), {.send_queue_bytes = 3u << 20}, records);
      for (uint64_t i = 0; i < kFrames; ++i) {
        const Bytes body = body_of(size_of(i), i);
        ASSERT_TRUE(serve(*link, nullptr, [&] { return link->send_space() >= body.size() + 40; }).ok())
            << link->close_reason().message();
        ASSERT_TRUE(link->append(FrameType::pages, i, body).ok());
      }
      ASSERT_TRUE(serve(*link, nullptr, [&] { return link->drained(); }).ok());
      EXPECT_EQ(link->send_space(), 3u << 20);
    });
    auto link = accepting(std::move(b));
    std::vector<Received> frames;
    const Status status = serve(*link, &frames, [&] { return frames.size() == kFrames; });
    EXPECT_TRUE(status.ok()) << status.message();
    sender.join();
    ASSERT_EQ(frames.size(), kFrames);
    for (uint64_t i = 0; i < kFrames; ++i) {
      ASSERT_EQ(frames[i].epoch, i);
      ASSERT_EQ(frames[i].body, body_of(size_of(i), i)) << i;
    }
    EXPECT_EQ(serve(*link, nullptr, [] { return false; }).code(), Code::unavailable);
  }
}

TEST_F(TlsLinkTest, BothDirectionsAtOnceDoNotBlockEachOther) {
  auto [near, far] = links({.send_queue_bytes = 256u << 10});
  constexpr uint64_t kRounds = 200;
  const auto run = [](Link& link) {
    uint64_t sent = 0;
    std::vector<Received> frames;
    const Bytes body = body_of(100'000, 1);
    const Status status = serve(link, &frames, [&] {
      while (sent < kRounds && link.append(FrameType::pages, sent, body).ok()) ++sent;
      return sent == kRounds && frames.size() == kRounds && link.drained();
    });
    EXPECT_TRUE(status.ok()) << status.message();
  };
  std::thread other([&run, &near = near] { run(*near); });
  run(*far);
  other.join();
}

TEST_F(TlsLinkTest, AFullQueueRefusesAndNeverGrows) {
  auto [near, far] = links({.send_queue_bytes = 1u << 20});
  for (const size_t size : {size_t{64} << 10, size_t{1000}}) {
    const Bytes body = body_of(size, 1);
    uint64_t queued = 0;
    Status status;
    for (int i = 0; i < 100'000 && status.ok(); ++i) {
      const size_t space = near->send_space();
      status = near->append(FrameType::pages, 1, body);
      EXPECT_EQ(status.ok(), space >= body.size() + sizeof(FrameHeader));
      if (status.ok()) {
        ++queued;
      } else if (near->wait(Clock::now() + 50ms, [](const FrameView&) { return Status(); }).ok() &&
                 near->send_space() >= body.size() + sizeof(FrameHeader)) {
        status = Status();
      }
    }
    EXPECT_EQ(status.code(), Code::exhausted);
    EXPECT_TRUE(near->open());
    std::thread reader([&far = far, queued] {
      std::vector<Received> frames;
      EXPECT_TRUE(serve(*far, &frames, [&] { return frames.size() == queued; }).ok());
    });
    EXPECT_TRUE(serve(*near, nullptr, [&near = near] { return near->drained(); }).ok());
    reader.join();
    EXPECT_EQ(near->send_space(), 1u << 20);
  }
  EXPECT_EQ(near->append(FrameType::pages, 1, body_of(1u << 20, 1)).code(), Code::invalid);
}

TEST_F(TlsLinkTest, ASmallFrameWaitsForNothing) {
  auto [near, far] = links();
  std::thread echo([&far = far] {
    int echoed = 0;
    while (echoed < 200) {
      const Status status = far->wait(Clock::now() + kPatience, [&](const FrameView& frame) {
        ++echoed;
        return far->append(FrameType::ack, frame.header.epoch, frame.body);
      });
      ASSERT_TRUE(status.ok()) << status.message();
    }
    EXPECT_TRUE(serve(*far, nullptr, [&] { return far->drained(); }).ok());
  });
  std::vector<Received> frames;
  for (uint64_t i = 0; i < 200; ++i) {
    ASSERT_TRUE(near->append(FrameType::heartbeat, i, body_of(16, i)).ok());
    EXPECT_FALSE(near->drained()) << "what waits for a record to be filled is still to be sent";
    const uint64_t mark = near->sent_bytes_when_drained();
    ASSERT_TRUE(serve(*near, &frames, [&] { return frames.size() == i + 1; }).ok());
    EXPECT_EQ(near->stats().sent_bytes, mark);
  }
  echo.join();
}

TEST_F(TlsLinkTest, AFlippedBitEndsTheSession) {
  // Between the two sits somebody who passes on what he hears, and changes one bit of the 5000th byte.
  auto [a, a_end] = unix_pair();
  auto [b, b_end] = unix_pair();
  std::thread between([&a_end = a_end, &b_end = b_end] {
    size_t passed = 0;
    pollfd ends[] = {{a_end.get(), POLLIN, 0}, {b_end.get(), POLLIN, 0}};
    for (;;) {
      if (::poll(ends, 2, 30'000) <= 0) return;
      for (const int side : {0, 1}) {
        if (ends[side].revents == 0) continue;
        char bytes[4096];
        const ssize_t got = ::recv(ends[side].fd, bytes, sizeof bytes, 0);
        if (got <= 0) return b_end.reset();  // the reader hears of the end, too
        if (side == 0 && passed < 5000 && passed + static_cast<size_t>(got) > 5000) bytes[5000 - passed] ^= 1;
        if (side == 0) passed += static_cast<size_t>(got);
        if (::send(ends[1 - side].fd, bytes, static_cast<size_t>(got), MSG_NOSIGNAL) != got)
          return a_end.reset();
      }
    }
  });
  auto near = connecting(std::move(a)), far = accepting(std::move(b));
  std::thread sender([&near = near] {
    (void)serve(*near, nullptr, [&] { return near->secured(); });
    for (int i = 0; i < 100; ++i) (void)near->append(FrameType::pages, 1, body_of(1000, 1));
    (void)serve(*near, nullptr, [] { return false; });
    near.reset();
  });
  std::vector<Received> frames;
  const Status status = serve(*far, &frames, [] { return false; });
  EXPECT_EQ(status.code(), Code::corrupt) << status.message();
  EXPECT_THAT(status.message(), HasSubstr("not of this session"));
  EXPECT_LT(frames.size(), 10u);
  for (const Received& frame : frames) EXPECT_EQ(frame.body, body_of(1000, 1));
  far.reset();
  sender.join();
  between.join();
}

TEST_F(TlsLinkTest, ReloadedFilesAreForNewConnectionsAndLivingOnesGoOn) {
  auto [near, far] = links();
  // The authority changes under both: nothing that the old one signed is taken any more.
  const auto other = make_authority(valid_now());
  for (const auto& [name, context] : {std::pair("a", a_), {"b", b_}}) {
    const TlsFiles files = keys_.issue(name, valid_now(), &*other);
    TestKeys::write(files.ca, other->certificate, 0644);
    ASSERT_TRUE(context->reload().ok());
  }
  ASSERT_TRUE(near->append(FrameType::commit, 1, body_of(48, 1)).ok());
  std::thread sender(
      [&near = near] { EXPECT_TRUE(serve(*near, nullptr, [&] { return near->drained(); }).ok()); });
  std::vector<Received> frames;
  EXPECT_TRUE(serve(*far, &frames, [&] { return !frames.empty(); }).ok());
  sender.join();
  auto [fresh_near, fresh_far] = links();
  EXPECT_TRUE(fresh_near->secured() && fresh_far->secured());
}

}  // namespace
}  // namespace remusd::ckpt
