// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The server by what its clients see. What it promises its observer: disk_nbd_observer_test.cc.
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <set>
#include <utility>

#include "disk/nbd_server.h"
#include "tests/assert_ok.h"
#include "tests/disk_served.h"

namespace remusd::disk {
namespace {

using nbd::Command;
using nbd::Error;

class NbdServer : public Served {};

TEST_F(NbdServer, ReadsBackWhatWasWritten) {
  serve();
  const auto client = connect();
  EXPECT_EQ(client->bytes(), kBytes);
  for (const uint32_t size : {1u, 512u, 4096u, 5000u, 128u << 10, 1u << 20, 32u << 20}) {
    Bytes data(size);
    for (size_t i = 0; i < size; ++i) data[i] = std::byte(i * 31 + size);
    EXPECT_EQ(client->write_now(333, data), Error::none);
    EXPECT_EQ(client->read_now(333, size), data);
    EXPECT_EQ(on_disk(333, size), data);
  }
  EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none);
  EXPECT_EQ(client->write_now(0, filled(4096, 9), nbd::kFua), Error::none);
  const auto counted = counters();
  EXPECT_EQ(counted.reads, 7u);
  EXPECT_EQ(counted.writes, 8u);
  EXPECT_EQ(counted.flushes, 1u);
  EXPECT_EQ(counted.errors, 0u);
  EXPECT_TRUE(eventually([&] { return counters().in_flight == 0; }));
}

TEST_F(NbdServer, StructuredAnswersHoldTheSame) {
  serve();
  const auto client = connect(true);
  const Bytes data = filled(1 << 20, 5);
  EXPECT_EQ(client->write_now(100, data), Error::none);
  EXPECT_EQ(client->read_now(100, 1 << 20), data);
  EXPECT_EQ(client->ask_now(Command::read, 0, 4096, nbd::kDf).error, Error::none);
  EXPECT_EQ(client->ask_now(Command::read, kBytes, 1).error, Error::inval);
}

TEST_F(NbdServer, TheExportHasTwoNames) {
  serve();
  EXPECT_TRUE(NbdClient(socket()).enter(""));
  EXPECT_TRUE(NbdClient(socket()).enter("disk0"));
  EXPECT_FALSE(NbdClient(socket()).enter("disk1"));
}

TEST_F(NbdServer, SocketsAreOursAloneAndRemoved) {
  serve();
  struct stat info {};
  ASSERT_EQ(::lstat(socket().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  server_.reset();
  EXPECT_NE(::lstat(socket().c_str(), &info), 0);
}

TEST_F(NbdServer, BadOptionsAreRefused) {
  serve();
  const auto refused = [](ServerOptions options) {
    return Server::start(std::move(options)).status().code();
  };
  EXPECT_EQ(refused({}), Code::invalid);
  ServerOptions options;
  options.disks.push_back({"d", std::string(200, 'x'), &*file_, false});
  EXPECT_EQ(refused(options), Code::invalid);
  options.disks[0].socket_path = folder_.path() + "/none/socket";
  EXPECT_EQ(refused(options), Code::not_found);
  options.disks[0].socket_path = folder_.path() + "/other";
  options.read_bytes = 1 << 20;
  EXPECT_EQ(refused(options), Code::invalid);
}

TEST_F(NbdServer, ZeroesAndTrimsReadAsZeros) {
  serve();
  const auto client = connect();
  EXPECT_EQ(client->write_now(0, filled(1 << 20, 1)), Error::none);
  EXPECT_EQ(client->ask_now(Command::write_zeroes, 1000, 100000).error, Error::none);
  EXPECT_EQ(client->ask_now(Command::write_zeroes, 300000, 777, nbd::kNoHole | nbd::kFua).error, Error::none);
  EXPECT_EQ(client->ask_now(Command::trim, 500000, 100000).error, Error::none);
  const Bytes got = client->read_now(0, 1 << 20);
  for (size_t i = 0; i < got.size(); ++i) {
    const bool zero = (i >= 1000 && i < 101000) || (i >= 300000 && i < 300777) || (i >= 500000 && i < 600000);
    ASSERT_EQ(got[i], std::byte(zero ? 0 : 1)) << i;
  }
  EXPECT_EQ(counters().zeroes, 3u);
  EXPECT_EQ(counters().zeroed_bytes, 200777u);
}

TEST_F(NbdServer, ZerosAreWrittenWhereTheFileCannotDoBetter) {
  serve();
  const auto client = connect();
  // Memory has no zero ranges.
  const ScopedFd memory(::memfd_create("disk", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memory.get(), kBytes), 0);
  const Diverted diverted(*file_, memory.get());
  EXPECT_EQ(client->write_now(0, filled(1 << 20, 1)), Error::none);
  EXPECT_EQ(client->ask_now(Command::write_zeroes, 100, 700000, nbd::kNoHole).error, Error::none);
  EXPECT_EQ(on_disk(0, 100), filled(100, 1));
  EXPECT_EQ(on_disk(100, 700000), filled(700000, 0));
  EXPECT_EQ(on_disk(700100, 1000), filled(1000, 1));
  EXPECT_EQ(counters().errors, 0u);
}

TEST_F(NbdServer, StatusTellsHolesFromData) {
  serve();
  const auto client = connect(true);
  EXPECT_EQ(client->write_now(1 << 20, filled(1 << 20, 1)), Error::none);
  const auto status = [&](uint16_t flags) {
    const Bytes content = client->ask_now(Command::block_status, 0, kBytes, flags).content;
    std::vector<std::pair<uint32_t, uint32_t>> extents;
    for (size_t at = 0; at + sizeof(nbd::Extent) <= content.size(); at += sizeof(nbd::Extent)) {
      const auto extent = nbd::get<nbd::Extent>(std::span(content).subspan(at));
      extents.emplace_back(extent.bytes, extent.state);
    }
    return extents;
  };
  const uint32_t hole = nbd::kStateHole | nbd::kStateZero;
  using Extents = std::vector<std::pair<uint32_t, uint32_t>>;
  EXPECT_EQ(status(0), (Extents{{1 << 20, hole}, {1 << 20, 0}, {62 << 20, hole}}));
  EXPECT_EQ(status(nbd::kReqOne), (Extents{{1 << 20, hole}}));
}

TEST_F(NbdServer, ReadOnlyDisksStayAsTheyAre) {
  serve(nullptr, true);
  const auto client = connect();
  EXPECT_EQ(client->write_now(0, filled(100000, 1)), Error::perm);
  EXPECT_EQ(client->ask_now(Command::trim, 0, 4096).error, Error::perm);
  EXPECT_EQ(client->read_now(0, 4096), filled(4096, 0));
  EXPECT_EQ(counters().errors, 2u);
}

TEST_F(NbdServer, WhatIsRefusedIsPassedOver) {
  serve();
  const auto client = connect();
  EXPECT_EQ(client->write_now(kBytes - 10, filled(1 << 20, 1)), Error::nospc);
  EXPECT_EQ(client->ask_now(static_cast<Command>(77), 0, 0).error, Error::inval);
  EXPECT_EQ(client->write_now(0, filled(10, 1)), Error::none);
  EXPECT_EQ(client->read_now(0, 10), filled(10, 1));
}

TEST_F(NbdServer, RequestsMayComeInPieces) {
  serve();
  const auto client = connect();
  Bytes said;
  nbd::RequestHead head;
  head.type = static_cast<uint16_t>(Command::write);
  head.offset = 50;
  head.bytes = 300;
  nbd::put(head, &said);
  said.resize(said.size() + 300, std::byte{7});
  for (const std::byte& byte : said) ASSERT_TRUE(client->send(&byte, 1));
  EXPECT_EQ(client->take<nbd::SimpleReply>().error, 0u);
  EXPECT_EQ(client->read_now(50, 300), filled(300, 7));
}

TEST_F(NbdServer, ManyRequestsAtOnceAreAllAnswered) {
  serve();
  const auto client = connect();
  constexpr size_t kMany = 500;
  std::set<uint64_t> open;
  for (uint64_t i = 0; i < kMany; ++i) {
    client->write(i, i * 4096, filled(4096, static_cast<unsigned>(i)));
    open.insert(i);
  }
  for (size_t i = 0; i < kMany; ++i) {
    const auto answer = client->answer();
    EXPECT_EQ(answer.error, Error::none);
    EXPECT_EQ(open.erase(answer.cookie), 1u);
  }
  for (uint64_t i = 0; i < kMany; ++i)
    EXPECT_EQ(client->read_now(i * 4096, 1), filled(1, static_cast<unsigned>(i)));
}

TEST_F(NbdServer, AnswersThatNobodyTakesHoldTheServersReadingUp) {
  serve();
  const auto client = connect();
  constexpr size_t kMany = 40;
  for (uint64_t i = 0; i < kMany; ++i) client->ask(Command::read, i, i << 20, 1 << 20);
  const auto other = connect();
  EXPECT_EQ(other->read_now(0, 4096), filled(4096, 0));
  EXPECT_LT(counters().in_flight, kMany);
  for (size_t i = 0; i < kMany; ++i) EXPECT_EQ(client->answer().content.size(), 1u << 20);
}

TEST_F(NbdServer, ReadsOfEverySizeAreAnsweredRightAtOnce) {
  serve();
  const auto client = connect(), other = connect();
  Bytes data(4u << 20);
  for (size_t i = 0; i < data.size(); ++i) data[i] = std::byte(i * 31 + (i >> 12));
  EXPECT_EQ(client->write_now(0, data), Error::none);
  // Large ones that begin with a page leave the page cache without a copy, the others do not.
  constexpr uint32_t kReads[] = {1 << 20, 512, 128 << 10, 4096, (1 << 20) - 1, 64 << 10, 2 << 20, 200000};
  constexpr size_t kMany = 64;
  const auto place = [](uint64_t i) { return (i % 5) * (300u << 10) + (i % 3 == 2 ? 512 : 0); };
  for (uint64_t i = 0; i < kMany; ++i) client->ask(Command::read, i, place(i), kReads[i % std::size(kReads)]);
  EXPECT_EQ(other->read_now(0, 1 << 20), Bytes(data.begin(), data.begin() + (1 << 20)))
      << "while the answers of one connection wait";
  for (size_t i = 0; i < kMany; ++i) {
    const auto answer = client->answer();
    EXPECT_EQ(answer.error, Error::none);
    EXPECT_TRUE(std::equal(answer.content.begin(), answer.content.end(),
                           data.begin() + static_cast<ptrdiff_t>(place(answer.cookie))))
        << answer.cookie;
  }
  EXPECT_EQ(counters().reads, kMany + 1);
}

TEST_F(NbdServer, RequestsThatCameTogetherAreAllAnsweredHoweverLateTheirAnswersAreTaken) {
  serve();
  const auto client = connect();
  constexpr uint32_t kSize = 128 << 10;
  constexpr uint64_t kMany = 16;
  Bytes heads;
  for (uint64_t i = 0; i < kMany; ++i) {
    EXPECT_EQ(client->write_now(i * kSize, filled(kSize, static_cast<unsigned>(i))), Error::none);
    nbd::RequestHead head;
    head.type = static_cast<uint16_t>(Command::read);
    head.cookie = i;
    head.offset = i * kSize;
    head.bytes = kSize;
    nbd::put(head, &heads);
  }
  client->send(heads.data(), heads.size());
  const auto waiting = [&] {
    int bytes = 0;
    return ::ioctl(client->fd(), FIONREAD, &bytes) == 0 ? static_cast<uint32_t>(bytes) : 0;
  };
  EXPECT_TRUE(eventually([&] { return waiting() > kSize && counters().in_flight == 1; })) << "it is full";
  for (uint64_t i = 0; i < kMany; ++i) {
    EXPECT_EQ(client->receive(sizeof(nbd::SimpleReply)).size(), sizeof(nbd::SimpleReply));
    EXPECT_EQ(client->receive(kSize), filled(kSize, static_cast<unsigned>(i))) << i;
  }
}

TEST_F(NbdServer, AClientMayVanishWithLargeAnswersOnTheirWay) {
  serve();
  const auto other = connect();
  EXPECT_EQ(other->write_now(0, filled(4 << 20, 6)), Error::none);
  for (const size_t taken : {0u, 10u, 300u << 10}) {
    const auto client = connect();
    for (uint64_t i = 0; i < 20; ++i) client->ask(Command::read, i, 0, 1 << 20);
    EXPECT_EQ(client->receive(taken).size(), taken);
    client->close();
    EXPECT_TRUE(eventually([&] { return counters().connections == 1 && counters().in_flight == 0; }));
  }
  EXPECT_EQ(other->read_now(0, 1 << 20), filled(1 << 20, 6));
}

TEST_F(NbdServer, NonsenseEndsTheConnectionAlone) {
  serve();
  const auto client = connect(), other = connect();
  const Bytes junk = filled(64, 0x55);
  client->send(junk.data(), junk.size());
  EXPECT_TRUE(client->closed());
  NbdClient early(socket());
  early.send(junk.data(), junk.size());
  early.receive(sizeof(nbd::Greeting));
  EXPECT_TRUE(early.closed());
  EXPECT_EQ(other->read_now(0, 512), filled(512, 0));
  EXPECT_TRUE(eventually([&] { return counters().connections == 1; }));
}

TEST_F(NbdServer, DisconnectAnswersWhatCameBefore) {
  serve();
  const auto client = connect();
  client->write(1, 0, filled(4096, 3));
  client->ask(Command::disconnect, 2, 0, 0);
  EXPECT_EQ(client->answer().cookie, 1u);
  EXPECT_TRUE(client->closed());
}

TEST_F(NbdServer, ClientsMayVanishInTheMiddle) {
  serve();
  const auto other = connect();
  for (const bool in_head : {true, false}) {
    const auto client = connect();
    nbd::RequestHead head;
    head.type = static_cast<uint16_t>(Command::write);
    head.bytes = 1 << 20;
    client->send(&head, in_head ? 13 : sizeof head);
    const Bytes half = filled(in_head ? 0 : 1 << 19, 1);
    client->send(half.data(), half.size());
    client->ask(Command::read, 1, 0, 1 << 20);
    client->close();
    EXPECT_TRUE(eventually([&] { return counters().connections == 1 && counters().in_flight == 0; }));
  }
  EXPECT_EQ(other->read_now(0, 4096), filled(4096, 0));
}

TEST_F(NbdServer, ConnectionsAreBounded) {
  serve();
  std::vector<std::unique_ptr<NbdClient>> clients;
  for (size_t i = 0; i < Server::kMaxConnections; ++i) clients.push_back(connect());
  NbdClient late(socket());
  EXPECT_EQ(counters().connections, Server::kMaxConnections);
  clients.pop_back();
  EXPECT_TRUE(late.enter());  // It was waiting.
  EXPECT_EQ(late.write_now(0, filled(512, 8)), Error::none);
  EXPECT_EQ(clients[3]->read_now(0, 512), filled(512, 8));
}

TEST_F(NbdServer, OverlappingChangesAreMadeOneAfterTheOther) {
  serve();
  const auto client = connect(), other = connect();
  FullPipe pipe;
  {
    const Diverted diverted(*file_, pipe.fd());
    client->write(1, 4096, filled(8192, 1));
    ASSERT_TRUE(eventually([&] { return counters().writes == 1; }));
    // It is with the kernel once a later request has been answered.
    EXPECT_EQ(client->ask_now(Command::read, kBytes, 1).error, Error::inval);
  }
  client->write(2, 8192, filled(8192, 2));     // overlaps the first
  client->ask(Command::trim, 3, 12288, 4096);  // overlaps the second alone
  client->write(4, 0, filled(4096, 4));        // overlaps none
  EXPECT_EQ(client->answer().cookie, 4u);
  EXPECT_EQ(other->read_now(0, 20480).size(), 20480u);
  EXPECT_EQ(on_disk(8192, 8192), filled(8192, 0));
  EXPECT_TRUE(eventually([&] { return counters().in_flight == 3; }));
  EXPECT_FALSE(server_->drain(Clock::now()));
  pipe.open();
  for (const uint64_t cookie : {1u, 2u, 3u}) EXPECT_EQ(client->answer().cookie, cookie);
  EXPECT_EQ(on_disk(8192, 4096), filled(4096, 2));
  EXPECT_EQ(on_disk(12288, 4096), filled(4096, 0));
  EXPECT_TRUE(server_->drain(Clock::now() + kPatience));
}

TEST_F(NbdServer, ErrorsOfTheFileReachTheClient) {
  serve();
  const auto client = connect(true);
  {
    const ScopedFd full(::open("/dev/full", O_RDWR | O_CLOEXEC));
    const Diverted diverted(*file_, full.get());
    EXPECT_EQ(client->write_now(0, filled(4096, 1)), Error::nospc);
  }
  {
    const ScopedFd unreadable(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    const Diverted diverted(*file_, unreadable.get());
    EXPECT_EQ(client->ask_now(Command::read, 0, 4096).error, Error::io);
  }
  EXPECT_EQ(counters().errors, 2u);
  EXPECT_EQ(client->read_now(0, 4096), filled(4096, 0));
}

TEST_F(NbdServer, AFailedFlushIsNeverForgotten) {
  serve();
  const auto client = connect(), other = connect();
  EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none);
  EXPECT_EQ(other->write_now(0, filled(512, 1)), Error::none);
  {
    FullPipe pipe;  // It cannot be flushed.
    const Diverted diverted(*file_, pipe.fd());
    EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::io);
  }
  EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::io);
  EXPECT_EQ(other->ask_now(Command::flush, 0, 0).error, Error::io);
  EXPECT_EQ(other->write_now(0, filled(512, 1), nbd::kFua), Error::io);
  EXPECT_EQ(other->write_now(0, filled(512, 2)), Error::none);
  EXPECT_EQ(client->read_now(0, 512), filled(512, 2));
  EXPECT_EQ(counters().errors, 4u);
}

TEST_F(NbdServer, AFlushAsksTheFileOnlyWhenSomethingHasChanged) {
  const auto fails = [this](NbdClient& client) {
    FullPipe pipe;  // It cannot be flushed: whoever asks it finds out.
    const Diverted diverted(*file_, pipe.fd());
    return client.ask_now(Command::flush, 0, 0).error == Error::io;
  };
  const auto changed = [&](NbdClient& client) { return client.write_now(0, filled(512, 1)) == Error::none; };
  const auto trimmed = [&](NbdClient& client) {
    return client.ask_now(Command::trim, 0, 4096).error == Error::none;
  };
  const auto elsewhere = [this](NbdClient&) {
    server_->doubt();
    return true;
  };
  const auto nothing = [](NbdClient& client) { return client.read_now(0, 512) == filled(512, 0); };
  const std::pair<std::function<bool(NbdClient&)>, bool> cases[] = {
      {changed, true}, {trimmed, true}, {elsewhere, true}, {nothing, false}};
  for (const auto& [change, asks] : cases) {
    serve();
    const auto client = connect();
    EXPECT_TRUE(trimmed(*client));
    EXPECT_EQ(client->ask_now(Command::flush, 0, 0).error, Error::none);
    EXPECT_FALSE(fails(*client));
    EXPECT_TRUE(change(*client));
    EXPECT_EQ(fails(*client), asks);
    server_.reset();
  }
  serve();
  EXPECT_TRUE(fails(*connect()));  // What lay there before may not be on the medium.
}

TEST_F(NbdServer, EndsWithWorkUnderWay) {
  serve();
  const auto client = connect(), half = connect(), idle = connect();
  for (uint64_t i = 0; i < 60; ++i) client->write(i, (i % 7) * 4096, filled(8192, static_cast<unsigned>(i)));
  for (uint64_t i = 0; i < 4; ++i) client->ask(Command::read, 100 + i, 0, 8 << 20);
  half->ask(Command::write, 1, 0, 1 << 20);
  server_.reset();
  EXPECT_TRUE(idle->closed());
  serve();
  EXPECT_EQ(connect()->read_now(kBytes - 512, 512), filled(512, 0));
}

TEST_F(NbdServer, DisksAreToldApart) {
  serve();
  server_.reset();
  const std::string second = folder_.path() + "/second";
  std::ofstream(second).close();
  std::filesystem::resize_file(second, kBytes / 2);
  auto file = LocalFile::open(second);
  ASSERT_OK(file);
  ServerOptions options;
  options.disks.push_back({"disk0", socket(), &*file_, false});
  options.disks.push_back({"disk1", socket() + "1", &*file, false});
  options.observer = &recorder_;
  auto server = Server::start(std::move(options));
  ASSERT_OK(server);
  NbdClient first(socket()), other(socket() + "1");
  ASSERT_TRUE(first.enter("disk0"));
  ASSERT_TRUE(other.enter("disk1"));
  EXPECT_EQ(other.bytes(), kBytes / 2);
  EXPECT_EQ(other.write_now(0, filled(512, 1)), Error::none);
  EXPECT_EQ(first.read_now(0, 512), filled(512, 0));
  ASSERT_EQ(recorder_.told().size(), 1u);
  EXPECT_EQ(recorder_.told()[0].change.disk, 1u);
  EXPECT_EQ((*server)->counters(0).writes, 0u);
  EXPECT_EQ((*server)->counters(1).writes, 1u);
}

}  // namespace
}  // namespace remusd::disk
