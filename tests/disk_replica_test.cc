// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "disk/replica.h"
#include "tests/assert_ok.h"
#include "tests/disk_epochs.h"
#include "tests/disk_power.h"
#include "tests/patience.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;
using testing::HasSubstr;

constexpr uint64_t kSmallJournal = kMinJournalBytes;

/// A backup host: disks with something on them, a journal, and a replica while there is one.
struct Host {
  explicit Host(uint32_t seed = 1, uint64_t journal_bytes = kSmallJournal) : epochs(seed) {
    journal = power.add("journal", journal_bytes);
    for (size_t disk = 0; disk < kEpochDisks.size(); ++disk) {
      files.push_back(power.add("disk", kEpochDisks[disk]));
      files.back()->set(0, epochs.noise(kEpochDisks[disk]));
      disks.push_back(files.back());
    }
  }

  void open(size_t limit_bytes = 1u << 20, ckpt::SessionId session = kReplicaSession) {
    ReplicaOptions options;
    options.limit_bytes = limit_bytes;
    options.session = session;
    options.generation = kReplicaGeneration;
    auto opened = Replica::open(disks, journal, options, [this] { ++told; });
    ASSERT_OK(opened);
    replica = std::move(*opened);
  }
  Status sync() {
    for (Bytes& body : epochs.first()) REMUSD_TRY(replica->sync(std::move(body)));
    return replica->commit(1, {}, kReplicaGeneration);
  }
  Status next() {
    std::vector<Bytes> bodies = epochs.next();
    return replica->commit(epochs.last(), std::move(bodies), kReplicaGeneration);
  }
  bool durable(uint64_t epoch) {
    return eventually([&] { return replica->durable_epoch() >= epoch || !replica->failure().ok(); }) &&
           replica->durable_epoch() >= epoch;
  }
  bool applied(uint64_t epoch) {
    return eventually([&] { return replica->applied_epoch() >= epoch || !replica->failure().ok(); }) &&
           replica->applied_epoch() >= epoch;
  }
  DiskImages content() const { return {files[0]->content(), files[1]->content()}; }
  Status recovered(Recovered* out) { return recover(*journal, disks, out); }

  Power power;
  Epochs epochs;
  std::shared_ptr<PowerMedium> journal;
  std::vector<std::shared_ptr<PowerMedium>> files;
  Media disks;
  std::atomic<int> told = 0;
  std::unique_ptr<Replica> replica;  // last: it uses the rest
};

Time in_a_while() {
  return Clock::now() + kPatience;
}

TEST(DiskReplica, FollowsRandomEpochsExactly) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    Host host(seed);
    host.open();
    ASSERT_OK(host.sync());
    for (int i = 0; i < 60; ++i) {
      ASSERT_OK(host.next());
      if (host.epochs.random()() % 8 != 0) continue;
      ASSERT_TRUE(host.applied(host.epochs.last())) << host.replica->failure().message();
      ASSERT_EQ(host.content(), host.epochs.image(host.epochs.last())) << "seed " << seed;
    }
    ASSERT_TRUE(host.durable(host.epochs.last())) << host.replica->failure().message();
    ASSERT_TRUE(host.applied(host.epochs.last()));
    EXPECT_EQ(host.content(), host.epochs.image(host.epochs.last()));
    ASSERT_TRUE(eventually([&] { return host.replica->queued_bytes() == 0; }));
    const ReplicaStats stats = host.replica->stats();
    EXPECT_EQ(stats.behind_bytes, 0u);
    EXPECT_GT(stats.journal_bytes, kSmallJournal) << "the log went round";
    EXPECT_GT(stats.applied_runs, 60u);
    EXPECT_EQ(stats.committed_epoch, host.epochs.last());
  }
}

TEST(DiskReplica, AnEpochWithoutChangesCostsNoFlush) {
  Host host;
  host.open();
  ASSERT_OK(host.sync());
  ASSERT_TRUE(host.durable(1));
  const uint64_t operations = host.power.operations();
  for (uint64_t epoch = 2; epoch < 100; ++epoch)
    ASSERT_OK(host.replica->commit(epoch, {}, kReplicaGeneration));
  EXPECT_TRUE(host.durable(99));
  EXPECT_TRUE(host.applied(99));
  EXPECT_EQ(host.power.operations(), operations);
}

TEST(DiskReplica, DisksAreNobodysUntilTheFirstEpochIsCommitted) {
  Host host;
  host.open();
  std::vector<Bytes> bodies = host.epochs.first();
  ASSERT_OK(host.replica->sync(std::move(bodies[0])));
  ASSERT_TRUE(eventually([&] { return host.replica->stats().synced_body_bytes > 0; }));
  auto header = look_at_journal(*host.journal);
  ASSERT_OK(header);
  EXPECT_EQ(static_cast<ReplicaState>(header->state), ReplicaState::inconsistent);
  EXPECT_EQ(header->generation, kReplicaGeneration);
  host.replica.reset();
  host.power.cycle(1);
  Recovered recovered;
  ASSERT_OK(host.recovered(&recovered));
  EXPECT_EQ(recovered.state, ReplicaState::inconsistent);
  EXPECT_EQ(recovered.session, kReplicaSession);
}

/// After a loss of power the disks are one epoch, at least the last that was said to be durable.
void expect_one_epoch(Host& host, uint64_t durable, const std::string& where) {
  Recovered recovered;
  const Status status = host.recovered(&recovered);
  ASSERT_TRUE(status.ok()) << where << status.message();
  if (recovered.state != ReplicaState::consistent) {
    ASSERT_EQ(durable, 0u) << where;
    return;
  }
  ASSERT_GE(recovered.epoch, host.epochs.changed(durable)) << where;
  ASSERT_LE(recovered.epoch, host.epochs.last()) << where;
  ASSERT_TRUE(host.content() == host.epochs.image(recovered.epoch)) << where << "epoch " << recovered.epoch;
}

/// A session that ends with the first failure, or after 25 epochs that are durable.
void run(Host& host) {
  host.open();
  Status status = host.sync();
  for (int i = 0; i < 24 && status.ok(); ++i) {
    status = host.next();
    if (status.ok() && host.epochs.random()() % 3 == 0 && !host.applied(host.epochs.last())) break;
  }
  EXPECT_TRUE(eventually(
      [&] { return host.replica->durable_epoch() == host.epochs.last() || !host.replica->failure().ok(); }));
}

TEST(DiskReplica, LosingPowerAtAnyWriteLeavesOneEpoch) {
  int consistent = 0, cut = 0;
  for (uint32_t seed = 0; seed < 600; ++seed) {
    const std::string where = "seed " + std::to_string(seed) + ": ";
    Host host(seed);
    host.power.cut_at(seed % 150);
    run(host);
    const uint64_t durable = host.replica->durable_epoch();
    cut += host.power.off() ? 1 : 0;
    consistent += durable > 0 ? 1 : 0;
    host.replica.reset();
    host.power.cycle(seed * 3 + 1);
    // The replay is cut off, too.
    Recovered recovered;
    host.power.cut_at(host.epochs.random()() % 12);
    (void)host.recovered(&recovered);
    host.power.cycle(seed * 3 + 2);
    ASSERT_NO_FATAL_FAILURE(expect_one_epoch(host, durable, where));
    // And another session may begin on them.
    host.epochs = Epochs(seed + 1);
    host.open();
    ASSERT_OK(host.sync());
    ASSERT_OK(host.next());
    ASSERT_TRUE(host.durable(2)) << host.replica->failure().message();
    host.replica.reset();
    host.power.cycle(seed * 3 + 3);
    ASSERT_NO_FATAL_FAILURE(expect_one_epoch(host, 2, where + "second session, "));
  }
  EXPECT_GT(cut, 400);
  EXPECT_GT(consistent, 400);
}

TEST(DiskReplica, LosingPowerInAnotherFirstSyncLeavesOneSessionsDisksOrNobodys) {
  std::array<int, 3> ends{};
  for (uint32_t seed = 0; seed < 200; ++seed) {
    Host host(seed);
    run(host);
    host.replica.reset();
    const Epochs before = host.epochs;
    host.epochs = Epochs(seed + 1000);
    host.power.cut_at(seed % 50);
    constexpr ckpt::SessionId kNext{1, 1, 1};
    host.open(1u << 20, kNext);
    Status status = host.sync();
    for (int i = 0; i < 5 && status.ok(); ++i) status = host.next();
    ASSERT_TRUE(eventually([&] {
      return host.replica->durable_epoch() == host.epochs.last() || !host.replica->failure().ok();
    }));
    host.replica.reset();
    host.power.cycle(seed);
    Recovered recovered;
    ASSERT_OK(host.recovered(&recovered));
    if (recovered.state != ReplicaState::consistent) {
      ASSERT_EQ(recovered.state, ReplicaState::inconsistent);
      ++ends[0];
      continue;
    }
    const bool next = recovered.session == kNext;
    ++ends[next ? 2 : 1];
    ASSERT_TRUE(host.content() == (next ? host.epochs : before).image(recovered.epoch)) << "seed " << seed;
  }
  for (const int end : ends) EXPECT_GT(end, 0);
}

TEST(DiskReplica, AnyFailureIsFinalAndLeavesOneEpoch) {
  int failed = 0;
  for (uint32_t seed = 0; seed < 400; ++seed) {
    const std::string where = "seed " + std::to_string(seed) + ": ";
    Host host(seed);
    host.power.fail_at(seed / 2 % 130, seed % 2 == 0 ? EIO : ENOSPC);
    run(host);
    if (const Status failure = host.replica->failure(); !failure.ok()) {
      ++failed;
      EXPECT_TRUE(eventually([&] { return host.told > 0; })) << where;
      EXPECT_THAT(failure.message(), HasSubstr(seed % 2 == 0 ? "Input/output" : "No space left")) << where;
      // What was under way on the other thread ends; nothing begins.
      const uint64_t applied = host.replica->applied_epoch(), durable = host.replica->durable_epoch();
      EXPECT_EQ(
          host.replica->commit(host.replica->stats().committed_epoch + 1, {}, kReplicaGeneration).message(),
          failure.message());
      EXPECT_LE(host.replica->applied_epoch(), applied + 1) << where;
      EXPECT_LE(host.replica->durable_epoch(), durable + 24) << where;
    }
    const uint64_t durable = host.replica->durable_epoch();
    host.replica.reset();
    host.power.cycle(seed);
    ASSERT_NO_FATAL_FAILURE(expect_one_epoch(host, durable, where));
  }
  EXPECT_GT(failed, 300);
}

TEST(DiskReplica, DrainDoesNotWaitForTheJournal) {
  Host host;
  host.open();
  ASSERT_OK(host.sync());
  ASSERT_TRUE(host.durable(1));
  host.power.hang_flushes_of("journal");
  for (int i = 0; i < 10; ++i) ASSERT_OK(host.next());
  ASSERT_TRUE(eventually([&] { return host.power.somebody_hangs(); }));
  EXPECT_LE(host.replica->applied_epoch(), 2u) << "nothing is applied before the journal has it";
  ASSERT_OK(host.replica->drain(in_a_while()));
  EXPECT_EQ(host.replica->applied_epoch(), 11u);
  EXPECT_LT(host.replica->durable_epoch(), 11u);
  EXPECT_EQ(host.content(), host.epochs.image(11));
  host.replica->release();
  EXPECT_FALSE(host.replica->released());
  EXPECT_EQ(host.replica->await_release(Clock::now()).code(), Code::timed_out);
  host.power.hang_flushes_of("nobody");
  ASSERT_OK(host.replica->await_release(in_a_while()));
  EXPECT_EQ(host.replica->durable_epoch(), 11u);
  host.replica.reset();
  host.power.cycle(1);
  EXPECT_EQ(host.content(), host.epochs.image(11));
  Recovered recovered;
  ASSERT_OK(host.recovered(&recovered));
  EXPECT_EQ(recovered.state, ReplicaState::released);
  EXPECT_EQ(recovered.epoch, 11u);
}

TEST(DiskReplica, DrainEndsAtItsDeadlineWhenADiskHangs) {
  Host host;
  host.open();
  std::vector<Bytes> bodies = host.epochs.first();
  host.power.hang_flushes_of("journal");  // the first sync cannot begin
  for (Bytes& body : bodies) ASSERT_OK(host.replica->sync(std::move(body)));
  ASSERT_OK(host.replica->commit(1, {}, kReplicaGeneration));
  EXPECT_EQ(host.replica->drain(Clock::now() + std::chrono::milliseconds(1)).code(), Code::timed_out);
  host.power.hang_flushes_of("nobody");
  ASSERT_OK(host.replica->drain(in_a_while()));
  EXPECT_EQ(host.content(), host.epochs.image(1));
}

TEST(DiskReplica, UntilItIsReleasedOnlyWhatTheGuestDidNotFlushIsLost) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    Host host(seed);
    host.open();
    ASSERT_OK(host.sync());
    for (int i = 0; i < 10; ++i) ASSERT_OK(host.next());
    ASSERT_TRUE(host.durable(11));
    ASSERT_OK(host.replica->drain(in_a_while()));
    host.power.cut_at(4 + host.epochs.random()() % 8);
    host.replica->release();
    const std::vector<std::byte> sector(512, std::byte{0xaa});
    std::vector<uint64_t> places;
    for (int i = 0; i < 4; ++i) {
      places.push_back(host.epochs.random()() % (kEpochDisks[0] / 512) * 512);
      (void)host.files[0]->write(places.back(), sector);
    }
    (void)eventually([&] { return host.replica->released() || !host.replica->failure().ok(); });
    const bool released = host.replica->released();
    host.replica.reset();
    host.power.cycle(seed);
    Recovered recovered;
    ASSERT_OK(host.recovered(&recovered));
    EXPECT_TRUE(!released || recovered.state == ReplicaState::released);
    DiskImages expected = host.epochs.image(11), got = host.content();
    // By the byte, since these epochs, other than a guest's, do not change whole sectors.
    for (const uint64_t at : places) {
      for (uint64_t i = at; i < at + sector.size(); ++i)
        if (got[0][i] == sector[0]) expected[0][i] = sector[0];
    }
    ASSERT_TRUE(got == expected) << "seed " << seed;
  }
}

TEST(DiskReplica, AFailedJournalDoesNotTakeAwayWhatWasAcknowledged) {
  Host host;
  host.open();
  ASSERT_OK(host.sync());
  ASSERT_TRUE(host.durable(1));
  ASSERT_TRUE(host.applied(1)) << "by the other thread";
  host.power.hang_flushes_of("journal");
  for (int i = 0; i < 5; ++i) ASSERT_OK(host.next());
  ASSERT_TRUE(eventually([&] { return host.power.somebody_hangs(); }));
  host.power.fail_at(0, EIO);
  host.power.hang_flushes_of("nobody");
  ASSERT_TRUE(eventually([&] { return !host.replica->failure().ok(); }));
  EXPECT_EQ(host.replica->applied_epoch(), 1u);
  ASSERT_OK(host.replica->drain(in_a_while()));
  EXPECT_EQ(host.content(), host.epochs.image(6));
  host.replica->release();
  EXPECT_THAT(host.replica->await_release(in_a_while()).message(), HasSubstr("Input/output"));
  EXPECT_FALSE(host.replica->released());
}

TEST(DiskReplica, TellsWhenItIsOverItsBoundAndWhenThereIsRoomAgain) {
  constexpr size_t kLimit = 100000;
  Host host(1, 1u << 20);
  host.open(kLimit);
  ASSERT_OK(host.sync());
  ASSERT_TRUE(host.durable(1));
  EXPECT_TRUE(host.replica->await_room(in_a_while()));
  ASSERT_TRUE(eventually([&] { return host.told == 1; })) << "epoch 1 is durable";
  host.power.hang_flushes_of("journal");
  uint64_t epoch = 1;
  while (!host.replica->over_limit()) {
    std::vector<Bytes> bodies = host.epochs.next();
    size_t kept = bodies.capacity() * sizeof(Bytes);
    for (const Bytes& body : bodies) kept += body.capacity();
    const size_t before = host.replica->queued_bytes();
    ASSERT_OK(host.replica->commit(++epoch, std::move(bodies), kReplicaGeneration));
    EXPECT_GE(host.replica->queued_bytes(), before + kept);
    EXPECT_LE(host.replica->queued_bytes(), before + kept + 200) << "it counts what it keeps";
  }
  EXPECT_FALSE(host.replica->await_room(Clock::now()));
  EXPECT_EQ(host.told, 1);
  host.power.hang_flushes_of("nobody");
  EXPECT_TRUE(host.replica->await_room(in_a_while()));
  EXPECT_TRUE(eventually([&] { return host.told > 1; }));
  EXPECT_FALSE(host.replica->over_limit());
  ASSERT_TRUE(host.applied(epoch));
  EXPECT_TRUE(host.content() == host.epochs.image(epoch));
  EXPECT_TRUE(host.replica->failure().ok());
}

TEST(DiskReplica, WhoeverDoesNotHeedTheBoundIsStopped) {
  constexpr size_t kLimit = 20000;
  Host host;
  host.power.hang_flushes_of("journal");
  host.open(kLimit);
  Status status;
  size_t largest = 0;
  for (int i = 0; i < 100 && status.ok(); ++i) {
    for (Bytes& body : host.epochs.first()) {
      largest = std::max(largest, body.capacity() + 200);
      status = host.replica->sync(std::move(body));
    }
    EXPECT_LE(host.replica->queued_bytes(), Replica::kHardLimit * kLimit + largest);
  }
  EXPECT_EQ(status.code(), Code::exhausted);
  EXPECT_EQ(host.replica->failure().code(), Code::exhausted);
  EXPECT_FALSE(host.replica->await_room(in_a_while())) << "it does not wait for what cannot come";
  host.power.hang_flushes_of("nobody");
}

TEST(DiskReplica, KeepsRealFiles) {
  const TemporaryDirectory folder;
  const std::string path = folder.path() + "/disk.journal";
  ASSERT_OK(make_journal_file(path, 1u << 20));
  std::vector<LocalFile> files;
  for (const uint64_t bytes : kEpochDisks) {
    const std::string name = folder.path() + "/" + std::to_string(bytes);
    std::ofstream(name).flush();
    std::filesystem::resize_file(name, bytes);
    auto file = LocalFile::open(name);
    ASSERT_OK(file);
    files.push_back(std::move(*file));
  }
  auto journal = LocalFile::open(path);
  ASSERT_OK(journal);
  const auto medium = std::make_shared<LocalMedium>(&*journal);
  const Media disks = media_of(files);
  Epochs epochs(4);
  auto content = [&] {
    DiskImages images;
    for (size_t disk = 0; disk < 2; ++disk) {
      images[disk].resize(kEpochDisks[disk]);
      EXPECT_TRUE(files[disk].read(0, images[disk]).ok());
    }
    return images;
  };
  auto replica = Replica::open(disks, medium, {.session = kReplicaSession});
  ASSERT_OK(replica);
  ASSERT_OK((*replica)->commit(1, epochs.first(), kReplicaGeneration));
  for (uint64_t epoch = 2; epoch < 40; ++epoch)
    ASSERT_OK((*replica)->commit(epoch, epochs.next(), kReplicaGeneration));
  ASSERT_TRUE(eventually([&] { return (*replica)->durable_epoch() == 39; }));
  ASSERT_TRUE(eventually([&] { return (*replica)->applied_epoch() == 39; }));
  EXPECT_TRUE(content() == epochs.image(39));
  replica->reset();
  // Replaying what is there already changes nothing.
  Recovered recovered;
  ASSERT_OK(recover(*medium, disks, &recovered));
  EXPECT_EQ(recovered.epoch, epochs.changed(39));
  EXPECT_TRUE(content() == epochs.image(39));
  replica = Replica::open(disks, medium, {});
  ASSERT_OK(replica);
  ASSERT_OK((*replica)->commit(1, epochs.first(), kReplicaGeneration));
  ASSERT_OK((*replica)->drain(in_a_while()));
  (*replica)->release();
  ASSERT_OK((*replica)->await_release(in_a_while()));
  EXPECT_TRUE(content() == epochs.image(1));
}

TEST(DiskReplica, AnEpochThatTheJournalHasNoRoomForEndsIt) {
  Host host;
  host.open(16u << 20);
  ASSERT_OK(host.sync());
  std::vector<Bytes> bodies;
  for (int i = 0; i < 8; ++i) bodies.push_back(host.epochs.first()[0]);
  const Status status = host.replica->commit(2, std::move(bodies), kReplicaGeneration);
  EXPECT_EQ(status.code(), Code::invalid);
  EXPECT_THAT(status.message(), HasSubstr("make it larger"));
  EXPECT_FALSE(host.replica->failure().ok());
  EXPECT_GT(host.told, 0);
}

}  // namespace
}  // namespace remusd::disk
