// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The simulated guest as the engine sees it: through guest.h, in real time, over its sockets.
#include "guest/guest.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <thread>

#include "ckpt/clock.h"
#include "guest/sim/machine.h"
#include "tests/patience.h"

namespace remusd::guest {
namespace {

using sim::FrameBytes;
using sim::MacBytes;
using sim::Message;
using ::testing::HasSubstr;

constexpr auto kDeadline = std::chrono::seconds(20);
constexpr MacBytes kClient{0x52, 0x54, 0, 0, 0, 1};

/// The net thread's side of a card.
class Peer {
 public:
  explicit Peer(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0) << path;
  }

  bool try_send(std::span<const std::byte> bytes) const {
    return ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  void send_raw(std::span<const std::byte> bytes) const { EXPECT_TRUE(try_send(bytes)); }
  /// Ends every call that waits in the socket.
  void shut() const { ::shutdown(fd_.get(), SHUT_RDWR); }
  bool request(uint64_t id) const {
    const FrameBytes frame = sim::to_frame({.to = sim::kBroadcast, .from = kClient, .id = id});
    std::array<std::byte, 4 + sizeof frame> bytes;
    const uint32_t length = htonl(sizeof frame);
    std::memcpy(bytes.data(), &length, 4);
    std::copy(frame.begin(), frame.end(), bytes.begin() + 4);
    return try_send(bytes);
  }
  /// The next message; nullopt when none comes within `timeout` or the guest closed the connection.
  std::optional<Message> next(Duration timeout = kDeadline) {
    std::array<std::byte, 4 + sizeof(FrameBytes)> bytes;
    size_t got = 0;
    while (got < bytes.size()) {
      pollfd wait{fd_.get(), POLLIN, 0};
      // Once a frame has begun its rest must come.
      const auto limit = got == 0 ? timeout : Duration(kDeadline);
      if (::poll(&wait, 1, static_cast<int>(to_ms(limit))) != 1) return std::nullopt;
      const ssize_t more = ::recv(fd_.get(), bytes.data() + got, bytes.size() - got, 0);
      if (more <= 0) {
        closed_ = true;
        return std::nullopt;
      }
      got += static_cast<size_t>(more);
    }
    uint32_t length = 0;
    std::memcpy(&length, bytes.data(), 4);
    EXPECT_EQ(ntohl(length), sizeof(FrameBytes));
    return sim::parse_frame(std::span(bytes).subspan(4));
  }
  /// The reply to `id`; other messages are passed over.
  std::optional<Message> reply_to(uint64_t id) {
    for (;;) {
      auto message = next();
      if (!message || message->id == id) return message;
    }
  }
  bool closed() {
    while (!closed_ && next()) {
    }
    return closed_;
  }

 private:
  ScopedFd fd_;
  bool closed_ = false;
};

class SimGuestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/remusd-sim-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    options_.runtime_dir = name;
    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = 4;
    definition_.nics.resize(1);
    ASSERT_TRUE(complete_and_validate(&definition_).ok());
  }
  void TearDown() override {
    EXPECT_TRUE(std::filesystem::is_empty(options_.runtime_dir)) << "every socket has been removed";
    std::filesystem::remove_all(options_.runtime_dir);
  }
  void set_cards(size_t count) {
    definition_.nics.resize(count);
    ASSERT_TRUE(complete_and_validate(&definition_).ok());
  }
  std::unique_ptr<Guest> started() {
    auto guest = start(definition_, options_);
    EXPECT_TRUE(guest.ok()) << guest.status().message();
    return *std::move(guest);
  }
  std::unique_ptr<Standby> prepared() {
    auto standby = prepare(definition_, options_);
    EXPECT_TRUE(standby.ok()) << standby.status().message();
    return *std::move(standby);
  }

  Definition definition_;
  DriverOptions options_;
};

/// One epoch: pauses the guest, brings the image up to date, and returns the device state.
std::vector<std::byte> checkpoint(Guest* guest, Standby* standby) {
  PageSet dirty;
  EXPECT_TRUE(guest->pause().ok());
  EXPECT_TRUE(guest->collect_dirty(&dirty).ok());
  for (const PageRange& range : dirty) {
    const size_t at = range.first * kPageSize, bytes = range.count * kPageSize;
    std::ranges::copy(guest->memory().subspan(at, bytes), standby->memory().subspan(at, bytes).begin());
  }
  const auto device = guest->save();
  EXPECT_TRUE(device.ok());
  std::vector<std::byte> copy(device->begin(), device->end());
  EXPECT_TRUE(guest->resume().ok());
  return copy;
}

TEST_F(SimGuestTest, StandsStillWhilePausedAndGoesOn) {
  const auto guest = started();
  ASSERT_TRUE(guest->start_tracking().ok());
  PageSet dirty;
  ASSERT_TRUE(guest->collect_dirty(&dirty).ok());
  ASSERT_TRUE(guest->pause().ok());
  const uint64_t digest = sim::memory_digest(guest->memory());
  const std::vector<std::byte> device(guest->save()->begin(), guest->save()->end());
  ASSERT_TRUE(guest->collect_dirty(&dirty).ok());
  ::poll(nullptr, 0, 20);  // Time in which a guest that runs would have made 20 steps.
  EXPECT_EQ(sim::memory_digest(guest->memory()), digest);
  EXPECT_TRUE(std::ranges::equal(*guest->save(), device));
  ASSERT_TRUE(guest->collect_dirty(&dirty).ok());
  EXPECT_TRUE(dirty.empty());
  ASSERT_TRUE(guest->resume().ok());
  EXPECT_TRUE(eventually([&] { return guest->collect_dirty(&dirty).ok() && !dirty.empty(); }));
}

TEST_F(SimGuestTest, FirstCollectReportsEveryPageThatIsNotZero) {
  const auto guest = started();
  EXPECT_EQ(guest->tracker_name(), "none");
  ASSERT_TRUE(guest->start_tracking().ok());
  EXPECT_EQ(guest->tracker_name(), "sim");
  ASSERT_TRUE(guest->pause().ok());
  PageSet dirty;
  ASSERT_TRUE(guest->collect_dirty(&dirty).ok());
  std::vector<std::byte> image(guest->memory().size());
  for (const PageRange& range : dirty) {
    const size_t at = range.first * kPageSize;
    std::ranges::copy(guest->memory().subspan(at, range.count * kPageSize),
                      image.begin() + static_cast<ptrdiff_t>(at));
  }
  EXPECT_TRUE(std::ranges::equal(image, guest->memory()));
  ASSERT_TRUE(guest->stop_tracking().ok());
  ASSERT_TRUE(guest->stop_tracking().ok()) << "harmless when none is planted";
}

TEST_F(SimGuestTest, AnswersOnEachCard) {
  set_cards(2);
  const auto guest = started();
  ASSERT_EQ(guest->nics().size(), 2u);
  Peer first(guest->nics()[0].socket_path), second(guest->nics()[1].socket_path);
  uint64_t seen = 0;
  for (uint64_t id = 1; id <= 20; ++id) {
    Peer& peer = id % 2 == 0 ? first : second;
    ASSERT_TRUE(peer.request(id));
    const auto reply = peer.reply_to(id);
    ASSERT_TRUE(reply);
    EXPECT_GT(reply->counter, seen);
    EXPECT_EQ(reply->to, kClient);
    seen = reply->counter;
  }
  EXPECT_EQ(guest->nics()[0].mac, definition_.nics[0].mac);
  EXPECT_EQ(guest->nics()[0].tap, "rm-vm1-0");
}

TEST_F(SimGuestTest, NoFrameLeavesWhilePaused) {
  const auto guest = started();
  Peer peer(guest->nics()[0].socket_path);
  ASSERT_TRUE(peer.request(1));
  ASSERT_TRUE(peer.reply_to(1));
  ASSERT_TRUE(guest->pause().ok());
  while (peer.next(Duration::zero())) {  // What was sent before the pause is here already.
  }
  ASSERT_TRUE(peer.request(2));
  EXPECT_FALSE(peer.next(std::chrono::milliseconds(40))) << "neither a reply nor a beacon";
  ASSERT_TRUE(guest->resume().ok());
  EXPECT_TRUE(peer.reply_to(2));
}

TEST_F(SimGuestTest, FailsOverToTheLastCheckpointWithNothingTakenBack) {
  auto guest = started();
  auto standby = prepared();
  EXPECT_EQ(differences(guest->facts(), standby->facts()), std::vector<std::string>());
  EXPECT_NE(guest->nics()[0].socket_path, standby->nics()[0].socket_path);
  const auto base = guest->base_stream();
  ASSERT_TRUE(base.ok());
  ASSERT_TRUE(guest->start_tracking().ok());
  Peer peer(guest->nics()[0].socket_path);
  std::vector<std::byte> device;
  uint64_t seen = 0;
  for (uint64_t epoch = 1; epoch <= 30; ++epoch) {
    ASSERT_TRUE(peer.request(epoch));
    const auto reply = peer.reply_to(epoch);
    ASSERT_TRUE(reply);
    device = checkpoint(guest.get(), standby.get());
    seen = reply->counter;  // Only now may the world see it.
  }
  PageSet dirty;
  ASSERT_TRUE(eventually([&] { return guest->collect_dirty(&dirty).ok() && !dirty.empty(); }));
  ASSERT_TRUE(guest->destroy().ok());
  EXPECT_TRUE(peer.closed());

  auto promoted = standby->restore_and_run(*base, device);
  ASSERT_TRUE(promoted.ok()) << promoted.status().message();
  Peer client((*promoted)->nics()[0].socket_path);
  ASSERT_TRUE(client.request(1000));
  const auto reply = client.reply_to(1000);
  ASSERT_TRUE(reply);
  EXPECT_GT(reply->counter, seen);

  // The replica can be protected in its turn.
  auto third = prepared();
  ASSERT_TRUE((*promoted)->start_tracking().ok());
  const auto device2 = checkpoint(promoted->get(), third.get());
  const auto again = third->restore_and_run(*(*promoted)->base_stream(), device2);
  EXPECT_TRUE(again.ok()) << again.status().message();
}

TEST_F(SimGuestTest, SpentStandbyRefusesToRunTwice) {
  const auto guest = started();
  const auto standby = prepared();
  EXPECT_EQ(standby->memory().size(), 4u << 20);
  EXPECT_TRUE(std::ranges::all_of(standby->memory(), [](std::byte byte) { return byte == std::byte{}; }));
  const auto base = guest->base_stream();
  ASSERT_TRUE(base.ok());
  ASSERT_TRUE(guest->start_tracking().ok());
  const auto device = checkpoint(guest.get(), standby.get());
  const auto first = standby->restore_and_run(*base, device);
  EXPECT_TRUE(first.ok());
  EXPECT_EQ(standby->restore_and_run(*base, device).status().code(), Code::unavailable);
  EXPECT_TRUE(standby->destroy().ok());
}

TEST_F(SimGuestTest, ALoadedStandbyStandsUntilItIsLetRunAndLeavesItsMemory) {
  const auto guest = started();
  const auto base = guest->base_stream();
  ASSERT_TRUE(guest->start_tracking().ok());
  for (const bool lost : {false, true}) {
    const auto standby = prepared();
    ASSERT_TRUE(guest->start_tracking().ok());
    const auto device = checkpoint(guest.get(), standby.get());
    EXPECT_EQ(standby->run().status().code(), Code::unavailable) << "not loaded yet";
    ASSERT_TRUE(standby->load(*base, device).ok());
    EXPECT_EQ(standby->load(*base, device).code(), Code::unavailable);
    if (lost) {
      EXPECT_TRUE(standby->destroy().ok());
      EXPECT_EQ(standby->run().status().code(), Code::unavailable);
      EXPECT_EQ(standby->take_memory().memory().size(), 4u << 20);
      continue;
    }
    const auto running = standby->run();
    ASSERT_TRUE(running.ok()) << running.status().message();
    Peer client((*running)->nics()[0].socket_path);
    ASSERT_TRUE(client.request(1000));
    EXPECT_TRUE(client.reply_to(1000));
  }
}

TEST_F(SimGuestTest, StandbyWithoutTheBaseIsNotRun) {
  const auto guest = started();
  const auto standby = prepared();
  ASSERT_TRUE(guest->start_tracking().ok());
  const auto device = checkpoint(guest.get(), standby.get());
  const auto refused = standby->restore_and_run({}, device);
  EXPECT_EQ(refused.status().code(), Code::corrupt);
  EXPECT_THAT(refused.status().message(), HasSubstr("base"));
}

TEST_F(SimGuestTest, PeerThatTalksNonsenseIsDisconnectedAndTheNextIsServed) {
  const auto guest = started();
  const std::string& path = guest->nics()[0].socket_path;
  for (const uint32_t length : {0u, 69633u, 0x7fffffffu, 0xffffffffu}) {
    Peer hostile(path);
    const uint32_t wire = htonl(length);
    hostile.send_raw(std::as_bytes(std::span(&wire, 1)));
    EXPECT_TRUE(hostile.closed()) << length;
  }
  {
    Peer half(path);
    half.send_raw(std::vector<std::byte>(3));
  }
  Peer peer(path);
  ASSERT_TRUE(peer.request(5));
  EXPECT_TRUE(peer.reply_to(5));
}

TEST_F(SimGuestTest, LargestFrameIsTakenWhole) {
  const auto guest = started();
  Peer peer(guest->nics()[0].socket_path);
  std::vector<std::byte> bytes(4 + 69632);
  const uint32_t length = htonl(69632);
  std::memcpy(bytes.data(), &length, 4);
  const FrameBytes frame = sim::to_frame({.to = sim::kBroadcast, .from = kClient, .id = 8});
  std::ranges::copy(frame, bytes.begin() + 4);
  peer.send_raw(bytes);
  EXPECT_TRUE(peer.reply_to(8));
}

TEST_F(SimGuestTest, PeerThatDoesNotReadNeitherHangsTheGuestNorLosesReplies) {
  const auto guest = started();
  ASSERT_TRUE(guest->start_tracking().ok());
  Peer peer(guest->nics()[0].socket_path);
  // Fills the way out until the guest has stopped taking requests, too: 40,000 are 2.5 MB.
  std::jthread asking([&] {
    for (uint64_t id = 1; id <= 40000 && peer.request(id);) ++id;
  });
  // Whatever happens below, the thread above does not wait for ever.
  const std::unique_ptr<const Peer, void (*)(const Peer*)> end(&peer, [](const Peer* p) { p->shut(); });
  PageSet dirty;
  for (int epoch = 0; epoch < 50; ++epoch) {
    ASSERT_TRUE(guest->pause().ok());
    ASSERT_TRUE(guest->collect_dirty(&dirty).ok());
    ASSERT_TRUE(guest->save().ok());
    ASSERT_TRUE(guest->resume().ok());
  }
  uint64_t seen = 0;
  for (uint64_t id = 1; id <= 40000;) {
    const auto message = peer.next();
    ASSERT_TRUE(message);
    // Beacons from before the connection are lost; from then on there is no gap.
    if (seen != 0) {
      ASSERT_EQ(message->counter, seen + 1);
    }
    seen = message->counter;
    if (message->id == 0) continue;
    ASSERT_EQ(message->id, id);
    ++id;
  }
}

TEST_F(SimGuestTest, DestroyFromAnotherThreadEndsCaptureWithUnavailable) {
  const auto guest = started();
  ASSERT_TRUE(guest->start_tracking().ok());
  std::atomic<bool> going = false;
  std::jthread killer([&] {
    while (!going) std::this_thread::yield();
    EXPECT_TRUE(guest->destroy().ok());
    EXPECT_TRUE(guest->destroy().ok());
  });
  PageSet dirty;
  Status status;
  const Time end = Clock::now() + kDeadline;
  while (status.ok() && Clock::now() < end) {
    status = guest->pause();
    if (status.ok()) status = guest->collect_dirty(&dirty);
    if (status.ok()) status = guest->save().status();
    if (status.ok()) status = guest->resume();
    going = true;
  }
  EXPECT_EQ(status.code(), Code::unavailable);
  EXPECT_EQ(guest->base_stream().status().code(), Code::unavailable);
  EXPECT_EQ(guest->memory().size(), 4u << 20) << "memory lives as long as the Guest";
}

TEST_F(SimGuestTest, PowerButtonIsToldOnce) {
  const auto guest = started();
  EXPECT_TRUE(guest->take_events().empty());
  ASSERT_TRUE(guest->power_button().ok());
  ASSERT_TRUE(guest->power_button().ok());
  const auto events = guest->take_events();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, EventKind::powered_off);
  EXPECT_TRUE(guest->take_events().empty());
}

TEST_F(SimGuestTest, FactsTellGuestsOfAnotherDefinitionApart) {
  const auto guest = started();
  EXPECT_EQ(guest->pid(), 0);
  EXPECT_EQ(guest->facts().driver, "sim");
  EXPECT_EQ(guest->facts().memory_bytes, 4u << 20);
  definition_.vcpus = 2;
  definition_.cpu = "other";
  definition_.memory_mib = 8;
  definition_.nics[0].model = "e1000";
  const auto standby = prepared();
  EXPECT_THAT(differences(guest->facts(), standby->facts()),
              ::testing::IsSupersetOf({HasSubstr("cpu model: primary 'sim64', backup 'other'"),
                                       HasSubstr("vcpus: primary 1, backup 2"), HasSubstr("memory bytes"),
                                       HasSubstr("device only on backup: /sim/net0 e1000")}));
}

TEST_F(SimGuestTest, ImpossibleOptionsAreRefused) {
  const auto attached = attach(definition_, options_);
  EXPECT_EQ(attached.status().code(), Code::unsupported);
  DriverOptions options = options_;
  options.runtime_dir = "/tmp/" + std::string(120, 'x');
  EXPECT_EQ(start(definition_, options).status().code(), Code::invalid);
  options.runtime_dir = "relative";
  EXPECT_EQ(prepare(definition_, options).status().code(), Code::invalid);
  options.runtime_dir = options_.runtime_dir + "/missing";
  EXPECT_EQ(start(definition_, options).status().code(), Code::not_found);
}

}  // namespace
}  // namespace remusd::guest
