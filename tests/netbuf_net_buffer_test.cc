// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The real gate between a stand-in for QEMU's stream socket and a SEQPACKET socket in the TAP's place.
// Faults covered: 6 (release repeated), 29 (packet buffer at its bound), 47 (guest floods), 48 (hostile
// peer).
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>
#include <mutex>

#include "ckpt/clock.h"
#include "netbuf/net_buffer.h"
#include "netbuf/rarp.h"

namespace remusd::netbuf {
namespace {

constexpr int kDeadlineMs = 10'000;
constexpr const char* kMac = "52:54:00:ab:cd:ef";

bool readable(int fd, int timeout_ms) {
  pollfd polled{fd, POLLIN, 0};
  return ::poll(&polled, 1, timeout_ms) == 1;
}

class NetBufferTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "netbufXXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/net0.sock";
    listener_ = ScopedFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener_.get(), 1), 0);
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    outside_ = ScopedFd(pair[0]);
    their_outside_ = ScopedFd(pair[1]);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void start(bool holding, NetOptions options = {}) {
    std::vector<Nic> nics;
    nics.push_back({"net0", kMac, path_, std::move(their_outside_)});
    auto started = NetBuffer::start(std::move(nics), options, "vm1", holding);
    ASSERT_TRUE(started.ok()) << started.status().message();
    net_ = *std::move(started);
    guest_ = ScopedFd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(guest_.valid());
  }

  static std::string framed(const std::string& payload) {
    const uint32_t length = htonl(static_cast<uint32_t>(payload.size()));
    return std::string(reinterpret_cast<const char*>(&length), 4) + payload;
  }
  void guest_sends(const std::string& payload) {
    const std::string bytes = framed(payload);
    ASSERT_EQ(::send(guest_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  /// The next frame seen outside, or "" when none came in time.
  std::string seen_outside(int timeout_ms = kDeadlineMs) {
    char buffer[70'000];
    if (!readable(outside_.get(), timeout_ms)) return "";
    const ssize_t got = ::recv(outside_.get(), buffer, sizeof buffer, 0);
    return got > 0 ? std::string(buffer, static_cast<size_t>(got)) : "";
  }
  template <typename Condition>
  bool eventually(Condition condition) {
    const Time deadline = Clock::now() + std::chrono::milliseconds(kDeadlineMs);
    while (!condition(net_->stats())) {
      if (Clock::now() > deadline) return false;
      ::poll(nullptr, 0, 1);
    }
    return true;
  }
  bool held(uint64_t frames) {
    return eventually([&](const NetStats& stats) { return stats.held_frames == frames; });
  }

  std::string directory_, path_;
  ScopedFd listener_, outside_, their_outside_, guest_;
  std::unique_ptr<NetBuffer> net_;
};

TEST_F(NetBufferTest, PassesBothWaysWhenNothingIsProtected) {
  start(/*holding=*/false);
  guest_sends("out");
  EXPECT_EQ(seen_outside(), "out");
  ASSERT_EQ(::send(outside_.get(), "in", 2, 0), 2);
  char buffer[16];
  ASSERT_TRUE(readable(guest_.get(), kDeadlineMs));
  ASSERT_EQ(::recv(guest_.get(), buffer, 6, MSG_WAITALL), 6);
  EXPECT_EQ(std::string(buffer, 6), framed("in"));
}

TEST_F(NetBufferTest, HoldsOutputUntilItsEpochIsReleased) {
  start(false);
  net_->hold(1);
  guest_sends("one");
  ASSERT_TRUE(held(1));
  net_->seal(1);
  guest_sends("two");
  ASSERT_TRUE(held(2));
  net_->release_through(1);
  EXPECT_EQ(seen_outside(), "one");
  ASSERT_TRUE(held(1));
  net_->release_through(1);  // an acknowledgement may come twice
  EXPECT_EQ(net_->stats().held_frames, 1u);
  net_->seal(2);
  net_->release_through(2);
  EXPECT_EQ(seen_outside(), "two");
}

TEST_F(NetBufferTest, WhatThisProcessSleptOverWaitsForANewerWord) {
  start(false);
  net_->hold(1);
  guest_sends("one");
  ASSERT_TRUE(held(1));
  net_->seal(1);
  net_->release_through(1, Clock::now() - std::chrono::milliseconds(1));
  guest_sends("two");  // shows that the net thread has turned
  ASSERT_TRUE(held(2));
  net_->release_through(1, Clock::now() + std::chrono::minutes(1));
  EXPECT_EQ(seen_outside(), "one");
  net_->seal(2);
  net_->release_through(2, Clock::now() - std::chrono::milliseconds(1));
  net_->shut();
  ASSERT_TRUE(eventually([](const NetStats& stats) { return stats.discarded_frames == 1; }));
  EXPECT_EQ(net_->stats().released_frames, 1u);
}

TEST_F(NetBufferTest, TellsOnceForEachEpochThatOutputWaits) {
  start(false);
  std::mutex mutex;
  std::vector<uint64_t> told;
  net_->watch_output([&](uint64_t epoch) {
    const std::lock_guard lock(mutex);
    told.push_back(epoch);
  });
  guest_sends("passes");
  EXPECT_EQ(seen_outside(), "passes");
  net_->hold(1);
  guest_sends("one");
  guest_sends("one again");
  ASSERT_TRUE(held(2));
  net_->seal(1);
  net_->seal(2);
  guest_sends("three");
  ASSERT_TRUE(held(3));
  net_->watch_output(nullptr);
  EXPECT_EQ(told, (std::vector<uint64_t>{1, 3}));
  net_->seal(3);
  guest_sends("four");
  ASSERT_TRUE(held(4));
  EXPECT_EQ(told.size(), 2u) << "nobody watches any more";
}

TEST_F(NetBufferTest, InboundGoesStraightOnWhileOutputIsHeld) {
  start(false);
  net_->hold(1);
  ASSERT_EQ(::send(outside_.get(), "in", 2, 0), 2);
  EXPECT_TRUE(readable(guest_.get(), kDeadlineMs));
}

TEST_F(NetBufferTest, WhatCannotBeInjectedIsCounted) {
  start(false);
  EXPECT_FALSE(net_->inject(7, std::vector<std::byte>(60))) << "no such card";
  net_->count_dropped_input(3);
  EXPECT_TRUE(eventually([](const NetStats& stats) { return stats.inbound_dropped == 4; }));
  EXPECT_TRUE(net_->inject(0, {}));  // taken, and found to be no frame by the net thread
  EXPECT_TRUE(eventually([](const NetStats& stats) { return stats.inbound_dropped == 5; }));
}

TEST_F(NetBufferTest, WinningTheRightToRunAloneLetsEverythingOut) {
  start(false);
  net_->hold(1);
  guest_sends("a");
  guest_sends("b");
  ASSERT_TRUE(held(2));
  net_->pass();
  EXPECT_EQ(seen_outside(), "a");
  EXPECT_EQ(seen_outside(), "b");
  guest_sends("c");
  EXPECT_EQ(seen_outside(), "c");
}

TEST_F(NetBufferTest, LosingItLetsNothingOutAnyMore) {
  start(false);
  net_->hold(1);
  guest_sends("never");
  ASSERT_TRUE(held(1));
  net_->shut();
  ASSERT_TRUE(eventually([](const NetStats& stats) { return stats.discarded_frames == 1; }));
  net_.reset();
  EXPECT_EQ(seen_outside(0), "");
}

TEST_F(NetBufferTest, ASecondSessionStartsItsEpochsAgainAndHolds) {
  start(false);
  net_->hold(1);
  for (uint64_t epoch = 1; epoch <= 500; ++epoch) net_->seal(epoch);
  net_->release_through(500);
  net_->pass();
  net_->hold(1);
  guest_sends("second session");
  ASSERT_TRUE(held(1));
  net_->seal(1);
  EXPECT_EQ(seen_outside(0), "");
  net_->release_through(1);
  EXPECT_EQ(seen_outside(), "second session");
}

TEST_F(NetBufferTest, AtTheBoundTheGuestWaitsAndNothingIsDropped) {
  NetOptions options;
  options.limit_bytes = 300'000;
  start(false, options);
  net_->hold(1);
  const std::string big(60'000, 'x');
  const std::string bytes = framed(big);
  // Until the socket itself is full: the gate has stopped reading.
  int sent = 0;
  size_t rest = 0;
  while (true) {
    pollfd polled{guest_.get(), POLLOUT, 0};
    if (::poll(&polled, 1, 200) != 1) break;
    const ssize_t wrote = ::send(guest_.get(), bytes.data() + rest, bytes.size() - rest, MSG_DONTWAIT);
    if (wrote < 0) break;
    rest = (rest + static_cast<size_t>(wrote)) % bytes.size();
    if (rest == 0) ++sent;
    ASSERT_LT(sent, 1000) << "the gate took everything: it has no bound";
  }
  const NetStats full = net_->stats();
  EXPECT_LE(full.held_bytes, options.limit_bytes);
  EXPECT_GE(full.stalls_full, 1u);
  net_->seal(1);
  net_->pass();
  for (int i = 0; i < sent; ++i)
    ASSERT_EQ(seen_outside().size(), big.size()) << "frame " << i << " of " << sent;
}

TEST_F(NetBufferTest, AFrameLongerThanAnyCardSendsClosesThePort) {
  start(false);
  const uint32_t huge = htonl(0x7fffffff);
  ASSERT_EQ(::send(guest_.get(), &huge, 4, 0), 4);
  guest_sends("after");
  EXPECT_EQ(seen_outside(100), "");
}

TEST_F(NetBufferTest, AFrameThatArrivesInPiecesIsPutTogether) {
  start(false);
  const std::string bytes = framed("in pieces");
  for (const char& piece : bytes) ASSERT_EQ(::send(guest_.get(), &piece, 1, 0), 1);
  EXPECT_EQ(seen_outside(), "in pieces");
}

TEST_F(NetBufferTest, AnnouncesTheAddressOutside) {
  start(false);
  net_->announce();
  const std::string seen = seen_outside();
  const auto expected = make_rarp_announcement(*parse_mac(kMac));
  EXPECT_EQ(seen, std::string(reinterpret_cast<const char*>(expected.data()), expected.size()));
  EXPECT_NE(seen_outside(), "") << "it is repeated";
}

TEST_F(NetBufferTest, AMissingGuestSocketOrTooSmallABufferIsRefused) {
  std::vector<Nic> nics;
  nics.push_back({"net0", kMac, directory_ + "/absent", std::move(their_outside_)});
  EXPECT_EQ(NetBuffer::start(std::move(nics), {}, "vm1", false).status().code(), Code::not_found);
  std::vector<Nic> none;
  NetOptions small;
  small.limit_bytes = 1000;
  EXPECT_EQ(NetBuffer::start(std::move(none), small, "vm1", false).status().code(), Code::invalid);
}

TEST(RarpTest, MacAddressesAreCheckedWhole) {
  EXPECT_TRUE(parse_mac("00:11:22:aa:BB:ff").ok());
  for (const char* bad : {"", "00:11:22:aa:bb", "00:11:22:aa:bb:gg", "00-11-22-aa-bb-cc", "00:11:22:aa:bb:c",
                          "0:11:22:aa:bb:ccc"}) {
    EXPECT_FALSE(parse_mac(bad).ok()) << bad;
  }
}

TEST(TapTest, ATapIsMadeUpAndGoesAwayWithItsDescriptor) {
  const std::string name = "rmt" + std::to_string(::getpid() % 1'000'000);
  {
    auto tap = open_tap(name, "");
    if (tap.status().code() == Code::denied || tap.status().code() == Code::not_found) {
      GTEST_SKIP() << "needs /dev/net/tun and the right to use it: " << tap.status().message();
    }
    ASSERT_TRUE(tap.ok()) << tap.status().message();
    EXPECT_NE(::if_nametoindex(name.c_str()), 0u);
    EXPECT_EQ(open_tap(name, "").status().code(), Code::exists);
  }
  EXPECT_EQ(::if_nametoindex(name.c_str()), 0u);
  EXPECT_FALSE(open_tap(name, "no-such-bridge").ok());
  EXPECT_EQ(open_tap("a-name-that-is-too-long", "").status().code(), Code::invalid);
}

}  // namespace
}  // namespace remusd::netbuf
