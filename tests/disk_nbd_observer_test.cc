// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the server promises whoever gives changes to epochs (disk/change.h).
#include <random>
#include <thread>

#include "disk/change_order.h"
#include "tests/disk_served.h"

namespace remusd::disk {
namespace {

using nbd::Command;
using nbd::Error;

TEST(ChangeOrder, LetsOverlappingOnesWaitForEachEarlierOne) {
  ChangeOrder order;
  ChangeOrder::Entry first{0, 10}, second{10, 20}, both{5, 15}, last{14, 16};
  std::vector<ChangeOrder::Entry*> ready;
  EXPECT_TRUE(order.add(&first));
  EXPECT_TRUE(order.add(&second));
  EXPECT_FALSE(order.add(&both));
  EXPECT_FALSE(order.add(&last));
  order.remove(&second, &ready);
  EXPECT_TRUE(ready.empty());  // `both` waits for the first still, and `last` for `both`
  order.remove(&first, &ready);
  EXPECT_EQ(ready, std::vector{&both});
  order.remove(&both, &ready);
  EXPECT_EQ(ready, (std::vector{&both, &last}));
  order.remove(&last, &ready);
  EXPECT_TRUE(order.empty());
}

class NbdObserver : public Served {};

TEST_F(NbdObserver, HearsOfEachChangeWithItsKind) {
  serve(&recorder_);
  const auto client = connect();
  EXPECT_EQ(client->write_now(5, filled(100, 1)), Error::none);
  EXPECT_EQ(client->ask_now(Command::write_zeroes, 10, 20).error, Error::none);
  EXPECT_EQ(client->ask_now(Command::write_zeroes, 30, 40, nbd::kNoHole).error, Error::none);
  EXPECT_EQ(client->ask_now(Command::trim, 50, 60).error, Error::none);
  EXPECT_EQ(client->write_now(kBytes, filled(1, 1)), Error::nospc);  // no change
  client->read_now(0, 100);
  const auto told = recorder_.told();
  ASSERT_EQ(told.size(), 4u);
  const ChangeKind kinds[] = {ChangeKind::write, ChangeKind::punch, ChangeKind::zero, ChangeKind::punch};
  const uint64_t offsets[] = {5, 10, 30, 50}, bytes[] = {100, 20, 40, 60};
  for (size_t i = 0; i < told.size(); ++i) {
    EXPECT_EQ(told[i].change.kind, kinds[i]);
    EXPECT_EQ(told[i].change.offset, offsets[i]);
    EXPECT_EQ(told[i].change.bytes, bytes[i]);
    EXPECT_EQ(told[i].data.size(), i == 0 ? 100u : 0u);
  }
  EXPECT_EQ(told[0].data, filled(100, 1));
}

TEST_F(NbdObserver, WhoeverRepeatsTheChangesHasTheSameBytes) {
  serve(&recorder_);
  constexpr size_t kClients = 4, kRounds = 600, kArea = 256 << 10;
  std::vector<std::unique_ptr<NbdClient>> clients;
  for (size_t i = 0; i < kClients; ++i) clients.push_back(connect());
  std::mt19937 random(1);
  std::vector<size_t> open(kClients);
  for (uint64_t i = 0; i < kRounds; ++i) {
    const size_t who = random() % kClients;
    if (open[who] == 30) {
      for (; open[who] > 0; --open[who]) EXPECT_EQ(clients[who]->answer().error, Error::none);
    }
    const uint64_t offset = random() % (kArea - 70000);
    const auto bytes = static_cast<uint32_t>(1 + random() % (i % 10 == 0 ? 70000 : 9000));
    const auto kind = random() % 8;
    if (kind == 0)
      clients[who]->ask(Command::trim, i, offset, bytes);
    else if (kind == 1)
      clients[who]->ask(Command::write_zeroes, i, offset, bytes, nbd::kNoHole);
    else
      clients[who]->write(i, offset, filled(bytes, static_cast<unsigned>(1 + i)));
    ++open[who];
  }
  for (size_t who = 0; who < kClients; ++who)
    for (; open[who] > 0; --open[who]) EXPECT_EQ(clients[who]->answer().error, Error::none);
  Bytes image(kArea);
  for (const auto& one : recorder_.told()) {
    const auto at = image.begin() + static_cast<ptrdiff_t>(one.change.offset);
    if (one.change.kind == ChangeKind::write)
      std::ranges::copy(one.data, at);
    else
      std::fill_n(at, one.change.bytes, std::byte{0});
  }
  EXPECT_EQ(recorder_.told().size(), kRounds);
  EXPECT_TRUE(on_disk(0, kArea) == image);
}

TEST_F(NbdObserver, WithoutRoomChangesWaitAndAllElseGoesOn) {
  serve(&recorder_);
  recorder_.give_room(1);
  const auto client = connect(), other = connect();
  client->write(1, 0, filled(4096, 1));
  EXPECT_EQ(client->answer().cookie, 1u);
  client->write(2, 0, filled(4096, 2));
  ASSERT_TRUE(eventually([&] { return counters().held == 1; }));
  other->write(3, 0, filled(4096, 3));
  client->ask(Command::trim, 4, 1 << 20, 4096);
  // Others pass them.
  EXPECT_EQ(other->read_now(0, 4096), filled(4096, 1));
  EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none);
  ASSERT_TRUE(eventually([&] { return counters().held == 3; }));
  EXPECT_EQ(recorder_.refused(), 1u);  // Those behind were not even asked for.
  EXPECT_TRUE(server_->drain(Clock::now() + kPatience));

  recorder_.give_room(2);
  server_->retry();
  EXPECT_EQ(client->answer().cookie, 2u);
  EXPECT_EQ(other->answer().cookie, 3u);
  EXPECT_EQ(other->read_now(0, 4096), filled(4096, 3));
  EXPECT_EQ(counters().held, 1u);
  recorder_.give_room(SIZE_MAX);
  server_->retry();
  EXPECT_EQ(client->answer().cookie, 4u);
  const auto told = recorder_.told();
  ASSERT_EQ(told.size(), 4u);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(told[i].data, filled(4096, static_cast<unsigned>(i + 1)));
  EXPECT_EQ(counters().held, 0u);
}

TEST_F(NbdObserver, ChangesThatWaitAreBounded) {
  serve(&recorder_);
  recorder_.give_room(0);
  const auto client = connect(), reader = connect();
  // Those that the server does not read must fit into the socket: it takes none before there is room.
  constexpr size_t kMany = Server::kMaxRequests + 16;
  for (uint64_t i = 0; i < kMany; ++i) client->write(i, i * 512, filled(512, 1));
  ASSERT_TRUE(eventually([&] { return counters().held == Server::kMaxRequests; }));
  EXPECT_EQ(reader->read_now(0, 512), filled(512, 0));
  EXPECT_EQ(counters().held, Server::kMaxRequests);
  recorder_.give_room(SIZE_MAX);
  server_->retry();
  for (size_t i = 0; i < kMany; ++i) EXPECT_EQ(client->answer().error, Error::none);
}

TEST_F(NbdObserver, TheirBytesAreBoundedOverAllConnections) {
  serve(&recorder_, false, 32 << 20);
  recorder_.give_room(0);
  const auto large = connect(), second = connect(), third = connect(), reader = connect();
  large->write(1, 0, filled(20 << 20, 1));
  ASSERT_TRUE(eventually([&] { return counters().held == 1; }));
  second->ask(Command::write, 2, 0, 4096);
  third->ask(Command::write, 3, 8192, 4096);
  EXPECT_EQ(reader->read_now(0, 1 << 20), filled(1 << 20, 0));  // of the other kind
  EXPECT_EQ(counters().writes, 1u);
  recorder_.give_room(SIZE_MAX);
  server_->retry();
  EXPECT_EQ(large->answer().error, Error::none);
  for (auto* client : {third.get(), second.get()}) {
    const Bytes data = filled(4096, 3);
    client->send(data.data(), data.size());
    EXPECT_EQ(client->answer().error, Error::none);
  }
}

TEST_F(NbdObserver, AVanishedClientsChangesKeepTheirPlace) {
  serve(&recorder_);
  recorder_.give_room(0);
  auto client = connect();
  const auto other = connect();
  client->write(1, 0, filled(4096, 1));
  ASSERT_TRUE(eventually([&] { return counters().held == 1; }));
  other->write(2, 0, filled(512, 2));
  ASSERT_TRUE(eventually([&] { return counters().held == 2; }));
  client.reset();
  recorder_.give_room(SIZE_MAX);
  server_->retry();
  EXPECT_EQ(other->answer().cookie, 2u);
  EXPECT_EQ(on_disk(0, 512), filled(512, 2));
  EXPECT_EQ(recorder_.told().size(), 2u);
  EXPECT_TRUE(eventually([&] { return counters().connections == 1; }));
}

TEST_F(NbdObserver, HeldChangesAreDroppedAtTheEnd) {
  serve(&recorder_);
  recorder_.give_room(0);
  const auto client = connect();
  for (uint64_t i = 0; i < 10; ++i) client->write(i, 0, filled(4096, 1));
  ASSERT_TRUE(eventually([&] { return counters().held == 10; }));
  server_.reset();
  EXPECT_TRUE(client->closed());
  EXPECT_TRUE(recorder_.told().empty());
  EXPECT_EQ(on_disk(0, 4096), filled(4096, 0));
}

TEST_F(NbdObserver, ToldChangesAreMadeBeforeTheEnd) {
  serve(&recorder_);
  const auto client = connect();
  FullPipe pipe;
  {
    const Diverted diverted(*file_, pipe.fd());
    client->write(1, 0, filled(4096, 1));
    ASSERT_TRUE(eventually([&] { return counters().writes == 1; }));
    EXPECT_EQ(client->ask_now(Command::read, kBytes, 1).error, Error::inval);
  }
  client->write(2, 0, filled(4096, 2));  // waits for the first
  ASSERT_TRUE(eventually([&] { return recorder_.told().size() == 2; }));
  std::thread opener([&] {
    EXPECT_TRUE(client->closed());
    pipe.open();
  });
  server_.reset();
  opener.join();
  EXPECT_EQ(on_disk(0, 4096), filled(4096, 2));
}

TEST_F(NbdObserver, AFlushThatMayWaitIsAnsweredAtOnceAndMadeGoodOnce) {
  serve(&recorder_);
  recorder_.let_flushes_wait();
  const auto client = connect();
  for (size_t i = 1; i <= 5; ++i) {
    EXPECT_EQ(client->write_now(0, filled(4096, static_cast<unsigned>(i))), Error::none);
    EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none);
  }
  EXPECT_TRUE(eventually([&] { return recorder_.flushed().size() == 5; }));
  EXPECT_EQ(recorder_.flushed(), std::vector<int>(5, 0));
  EXPECT_EQ(client->write_now(0, filled(512, 9), nbd::kFua), Error::none);
  EXPECT_EQ(recorder_.flushed().size(), 5u);
}

TEST_F(NbdObserver, AFlushOfNobodysThatFailsIsToldAndRemembered) {
  serve(&recorder_);
  recorder_.let_flushes_wait();
  const auto client = connect();
  {
    FullPipe pipe;
    const Diverted diverted(*file_, pipe.fd());
    EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none);
    ASSERT_TRUE(eventually([&] { return !recorder_.flushed().empty(); }));
  }
  EXPECT_NE(recorder_.flushed()[0], 0);
  EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::io);
  EXPECT_EQ(client->write_now(0, filled(512, 1), nbd::kFua), Error::io);
  EXPECT_TRUE(recorder_.told().empty());  // What cannot be made good is not begun.
  EXPECT_EQ(recorder_.flushed().size(), 1u);
}

TEST_F(NbdObserver, HearsWhenEachChangeIsDone) {
  serve(&recorder_);
  const auto client = connect();
  for (uint8_t i = 0; i < 3; ++i) EXPECT_EQ(client->write_now(0, filled(100, i)), Error::none);
  EXPECT_EQ(recorder_.changed(), (std::vector<uint64_t>{1, 2, 3}));
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(recorder_.told()[i].change.sequence, i + 1);
}

TEST_F(NbdObserver, HearsWhichChangeFailed) {
  serve(&recorder_);
  const auto client = connect();
  EXPECT_EQ(client->write_now(0, filled(100, 1)), Error::none);
  {
    const ScopedFd full(::open("/dev/full", O_RDWR | O_CLOEXEC));
    const Diverted diverted(*file_, full.get());
    EXPECT_EQ(client->write_now(512, filled(100, 2)), Error::nospc);
  }
  EXPECT_EQ(client->write_now(0, filled(100, 3)), Error::none);
  EXPECT_EQ(recorder_.changed(), (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(recorder_.failed(), (std::vector<uint64_t>{2}));
}

TEST_F(NbdObserver, HeldFlushesWaitAndAllElseGoesOn) {
  serve(&recorder_);
  recorder_.hold_flushes(true);
  const auto client = connect(), other = connect();
  client->ask(Command::flush, 1, 0, 0);
  EXPECT_EQ(other->write_now(0, filled(100, 1)), Error::none);
  recorder_.hold_flushes(false);
  server_->retry();
  EXPECT_EQ(client->answer().error, Error::none);
}

}  // namespace
}  // namespace remusd::disk
