// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "disk/journal.h"
#include "tests/assert_ok.h"
#include "tests/disk_epochs.h"
#include "tests/disk_power.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;
using testing::HasSubstr;

/// Disks at epoch 1, and a journal that says so.
class DiskJournal : public testing::Test {
 protected:
  void SetUp() override {
    file_ = power_.add("journal", 256u << 10);
    for (size_t disk = 0; disk < kEpochDisks.size(); ++disk) {
      disks_.push_back(power_.add("disk", kEpochDisks[disk]));
    }
    begin();
  }

  void begin() {
    for (size_t disk = 0; disk < kEpochDisks.size(); ++disk)
      ASSERT_OK(disks_[disk]->write(0, epochs_.image(1)[disk]));
    ASSERT_OK(flush_all(disks_));
    auto opened = Journal::open(*file_, sizes_of(disks_));
    ASSERT_OK(opened);
    journal_ = std::make_unique<Journal>(std::move(*opened));
    ASSERT_OK(journal_->start(kReplicaSession, 1, kReplicaGeneration));
  }
  /// Appends an epoch with changes; where its first record begins.
  uint64_t append() {
    std::vector<Bytes> bodies;
    while (bodies.empty()) bodies = epochs_.next();
    EXPECT_TRUE(journal_->has_room(epoch_bytes(bodies)));
    const uint64_t position = journal_->position();
    const Status status = journal_->append(epochs_.last(), kReplicaGeneration, bodies);
    EXPECT_TRUE(status.ok()) << status.message();
    return position;
  }
  void append_and_flush(int epochs) {
    for (int i = 0; i < epochs; ++i) {
      append();
      ASSERT_OK(journal_->flush());
    }
  }
  Status recovered() {
    epoch_ = 0;
    const Status status = recover(*file_, disks_, &recovered_);
    if (status.ok()) epoch_ = recovered_.epoch;
    return status;
  }
  DiskImages content() {
    DiskImages image;
    for (size_t disk = 0; disk < image.size(); ++disk) {
      image[disk].resize(kEpochDisks[disk]);
      EXPECT_TRUE(disks_[disk]->read(0, image[disk]).ok());
    }
    return image;
  }
  void flip(uint64_t place) {
    std::byte byte{};
    ASSERT_OK(file_->read(place, std::span(&byte, 1)));
    byte ^= std::byte{0x10};
    file_->set(place, std::span(&byte, 1));
  }

  Epochs epochs_{5};
  Power power_;
  std::shared_ptr<PowerMedium> file_;
  Media disks_;
  std::unique_ptr<Journal> journal_;
  Recovered recovered_;
  uint64_t epoch_ = 0;
};

TEST_F(DiskJournal, WhatIsFlushedIsReplayed) {
  append_and_flush(5);
  ASSERT_OK(recovered());
  EXPECT_EQ(recovered_.state, ReplicaState::consistent);
  EXPECT_EQ(recovered_.epoch, epochs_.last());
  EXPECT_EQ(recovered_.generation, kReplicaGeneration);
  EXPECT_EQ(recovered_.session, kReplicaSession);
  EXPECT_EQ(recovered_.replayed_epochs, 5u);
  EXPECT_TRUE(content() == epochs_.image(epochs_.last()));
  ASSERT_OK(recovered());
  EXPECT_EQ(recovered_.replayed_epochs, 0u) << "the log is empty now";
  EXPECT_EQ(recovered_.epoch, epochs_.last());
}

TEST_F(DiskJournal, WhatLeftTheLogIsNotReplayed) {
  append_and_flush(3);
  const DiskImages third = epochs_.image(epochs_.last());
  for (size_t disk = 0; disk < 2; ++disk) ASSERT_OK(disks_[disk]->write(0, third[disk]));
  ASSERT_OK(flush_all(disks_));
  ASSERT_OK(journal_->advance(epochs_.last(), kReplicaGeneration, journal_->position()));
  EXPECT_EQ(journal_->live_bytes(), 0u);
  append_and_flush(2);
  ASSERT_OK(recovered());
  EXPECT_EQ(recovered_.replayed_epochs, 2u);
  EXPECT_TRUE(content() == epochs_.image(epochs_.last()));
}

TEST_F(DiskJournal, TheLogGoesRoundWithoutTakingOldRecordsForNew) {
  for (int lap = 0; lap < 200; ++lap) {
    append_and_flush(1 + lap % 4);
    const DiskImages newest = epochs_.image(epochs_.last());
    if (lap % 3 == 0) {
      ASSERT_OK(recovered());
      ASSERT_TRUE(content() == newest) << lap;
      auto opened = Journal::open(*file_, sizes_of(disks_));
      ASSERT_OK(opened);
      journal_ = std::make_unique<Journal>(std::move(*opened));
      ASSERT_OK(journal_->start(kReplicaSession, epochs_.last(), kReplicaGeneration));
      continue;
    }
    for (size_t disk = 0; disk < 2; ++disk) ASSERT_OK(disks_[disk]->write(0, newest[disk]));
    ASSERT_OK(flush_all(disks_));
    ASSERT_OK(journal_->advance(epochs_.last(), kReplicaGeneration, journal_->position()));
  }
  EXPECT_GT(journal_->written_bytes(), 0u);
}

TEST_F(DiskJournal, ARecordThatIsCutAnywhereEndsTheLogBeforeItsEpoch) {
  append_and_flush(2);
  const uint64_t whole = epochs_.last(), begin = append();
  ASSERT_OK(journal_->flush());
  const uint64_t end = journal_->position();
  std::vector<std::byte> log(end - begin);
  ASSERT_OK(file_->read(kJournalLogAt + begin, log));
  std::vector<std::byte> header(kJournalLogAt);
  ASSERT_OK(file_->read(0, header));
  // Its last block ends with padding, which may be missing.
  uint64_t used = log.size();
  while (log[used - 1] == std::byte{0}) --used;
  for (uint64_t size = 0; size < used; size += 1 + size % 37) {
    std::vector<std::byte> cut(log.begin(), log.begin() + static_cast<ptrdiff_t>(size));
    cut.resize(log.size(), std::byte{0xee});
    file_->set(kJournalLogAt + begin, cut);
    file_->set(0, header);
    ASSERT_OK(recovered());
    ASSERT_EQ(epoch_, whole) << size;
    ASSERT_TRUE(content() == epochs_.image(whole)) << size;
  }
  file_->set(kJournalLogAt + begin, log);
  file_->set(0, header);
  ASSERT_OK(recovered());
  EXPECT_TRUE(content() == epochs_.image(epochs_.last()));
}

TEST_F(DiskJournal, DamageToWhatWasDurableIsNotTakenForALossOfPower) {
  append_and_flush(1);
  const uint64_t begin = append();
  ASSERT_OK(journal_->flush());
  const uint64_t end = journal_->position();
  append_and_flush(2);
  std::vector<std::byte> header(kJournalLogAt), log(end - begin);
  ASSERT_OK(file_->read(0, header));
  ASSERT_OK(file_->read(kJournalLogAt + begin, log));
  uint64_t used = log.size();
  while (log[used - 1] == std::byte{0}) --used;
  int damaged = 0;
  for (uint64_t at = begin; at < begin + used; at += 1 + at % 11) {
    flip(kJournalLogAt + at);
    const Status status = recovered();
    if (status.ok()) {
      // Only between records there is nothing to damage.
      ASSERT_EQ(epoch_, epochs_.last()) << at;
      ASSERT_TRUE(content() == epochs_.image(epoch_)) << at;
      file_->set(0, header);
    } else {
      ++damaged;
      ASSERT_EQ(status.code(), Code::corrupt) << at;
      ASSERT_THAT(status.message(), HasSubstr("damaged"));
    }
    file_->set(kJournalLogAt + begin, log);
  }
  EXPECT_GT(damaged, 20);
}

TEST_F(DiskJournal, ADamagedHeaderNeverBringsAnOlderStateBack) {
  append_and_flush(2);
  const DiskImages newest = epochs_.image(epochs_.last());
  for (size_t disk = 0; disk < 2; ++disk) ASSERT_OK(disks_[disk]->write(0, newest[disk]));
  ASSERT_OK(flush_all(disks_));
  ASSERT_OK(journal_->advance(epochs_.last(), kReplicaGeneration, journal_->position()));
  const uint64_t slot = journal_->header().serial % 2;
  append_and_flush(1);
  flip(slot * kJournalBlockBytes + 40);
  const Status status = recovered();
  if (status.ok()) {  // the log that the older one knows is still whole
    EXPECT_TRUE(content() == epochs_.image(epochs_.last()));
  } else {
    EXPECT_EQ(status.code(), Code::corrupt);
  }
  // A change of state stands in both.
  ASSERT_OK(journal_->mark_inconsistent(kReplicaSession, kReplicaGeneration + 1));
  flip(journal_->header().serial % 2 * kJournalBlockBytes + 40);
  ASSERT_OK(recovered());
  EXPECT_EQ(recovered_.state, ReplicaState::inconsistent);
  EXPECT_EQ(recovered_.generation, kReplicaGeneration + 1);
  flip((journal_->header().serial + 1) % 2 * kJournalBlockBytes + 40);
  ASSERT_OK(recovered());
  EXPECT_EQ(recovered_.state, ReplicaState::none);
}

TEST_F(DiskJournal, AHeaderThatIsCutLeavesTheOneBefore) {
  for (int state = 0; state < 3; ++state) {
    for (uint64_t operation = 0; operation < 4; ++operation) {
      for (uint32_t seed = 0; seed < 8; ++seed) {
        begin();
        power_.cut_at(operation);
        Status status = state == 0   ? journal_->mark_inconsistent(kReplicaSession, 9)
                        : state == 1 ? journal_->start(kReplicaSession, 50, 9)
                                     : journal_->release(50, 9);
        EXPECT_FALSE(status.ok());
        power_.cycle(seed);
        auto header = look_at_journal(*file_);
        ASSERT_OK(header);
        const bool old = header->generation == kReplicaGeneration && header->epoch == 1 && header->state == 2;
        const bool made = header->generation == 9 && header->epoch == (state == 0 ? 0u : 50u) &&
                          header->state == static_cast<uint32_t>(state) + 1;
        EXPECT_TRUE(old || made);
        EXPECT_TRUE(made || operation < 2) << "the first of the two was flushed";
      }
    }
  }
}

TEST_F(DiskJournal, SmallerDisksAreNotReplayedOnAndLargerOnesAre) {
  append_and_flush(1);
  const auto larger = power_.add("larger", kEpochDisks[1] + 512);
  ASSERT_OK(larger->write(0, epochs_.image(1)[1]));
  Media grown{power_.add("same", kEpochDisks[0]), larger};
  ASSERT_OK(grown[0]->write(0, epochs_.image(1)[0]));
  const std::vector<std::byte> header = [&] {
    std::vector<std::byte> bytes(kJournalLogAt);
    EXPECT_TRUE(file_->read(0, bytes).ok());
    return bytes;
  }();
  ASSERT_OK(recover(*file_, grown, &recovered_));
  EXPECT_EQ(recovered_.epoch, epochs_.last());
  std::vector<std::byte> found = larger->content();
  found.resize(kEpochDisks[1]);
  EXPECT_TRUE(found == epochs_.image(epochs_.last())[1]);
  file_->set(0, header);
  Media others{power_.add("other", kEpochDisks[0]), power_.add("other", kEpochDisks[1] - 512)};
  EXPECT_EQ(recover(*file_, others, &recovered_).code(), Code::invalid);
  others.pop_back();
  EXPECT_EQ(recover(*file_, others, &recovered_).code(), Code::invalid);
  ASSERT_OK(recovered());
  EXPECT_TRUE(content() == epochs_.image(epochs_.last()));
}

TEST_F(DiskJournal, WhatOnlyMemoryHasOfTheLogIsMadeDurableBeforeItIsReplayed) {
  std::array<int, 2> ends{};
  for (uint64_t operation = 0; operation < 16; ++operation) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
      epochs_ = Epochs(seed);
      begin();
      append_and_flush(1);
      const uint64_t durable = epochs_.last();
      append();
      power_.fail_at(1, EIO);
      EXPECT_FALSE(journal_->flush().ok());
      power_.fail_at(Power::kNever, 0);
      power_.cut_at(operation);
      (void)recovered();
      power_.cycle(seed);
      ASSERT_OK(recovered());
      ASSERT_GE(epoch_, durable);
      ASSERT_TRUE(content() == epochs_.image(epoch_)) << operation << ", seed " << seed;
      ++ends[epoch_ == durable ? 0 : 1];
    }
  }
  for (const int end : ends) EXPECT_GT(end, 10);
}

TEST_F(DiskJournal, AFailureOfAMediumWhileReplayingIsHandedOnAndCanBeRepeated) {
  append_and_flush(4);
  int failed = 0;
  for (uint64_t operation = 0; operation < 30; ++operation) {
    power_.fail_at(operation, EIO);
    const Status status = recovered();
    power_.fail_at(Power::kNever, 0);
    if (!status.ok()) {
      ++failed;
      EXPECT_THAT(status.message(), HasSubstr("Input/output"));
      ASSERT_OK(recovered());
    }
    ASSERT_TRUE(content() == epochs_.image(epochs_.last()));
    ASSERT_OK(journal_->start(kReplicaSession, epochs_.last(), kReplicaGeneration));
    append_and_flush(4);
  }
  EXPECT_GT(failed, 5);
}

TEST(DiskJournalFile, IsMadeWithAllItsRoomKeptAndGrown) {
  const TemporaryDirectory folder;
  const std::string path = folder.path() + "/disk.journal";
  EXPECT_EQ(make_journal_file(path, 1000).code(), Code::invalid);
  EXPECT_EQ(make_journal_file(folder.path() + "/none/disk.journal", 1u << 20).code(), Code::not_found);
  ASSERT_OK(make_journal_file(path, (1u << 20) + 1));
  EXPECT_EQ(std::filesystem::file_size(path), (1u << 20) + kJournalBlockBytes);
  ASSERT_OK(make_journal_file(path, 512u << 10));
  EXPECT_EQ(std::filesystem::file_size(path), (1u << 20) + kJournalBlockBytes) << "it does not get smaller";
  ASSERT_OK(make_journal_file(path, 4u << 20));
  EXPECT_EQ(std::filesystem::file_size(path), 4u << 20);
  auto file = LocalFile::open(path);
  ASSERT_OK(file);
  LocalMedium medium(&*file);
  auto header = look_at_journal(medium);
  ASSERT_OK(header);
  EXPECT_EQ(static_cast<ReplicaState>(header->state), ReplicaState::none);
  const std::array<uint64_t, 1> disks{512};
  auto journal = Journal::open(medium, disks);
  ASSERT_OK(journal);
  ASSERT_OK(journal->start(kReplicaSession, 1, 2));
  EXPECT_TRUE(journal->fits(uint64_t{3} << 20));
  EXPECT_FALSE(journal->fits(uint64_t{4} << 20));
  header = look_at_journal(medium);
  ASSERT_OK(header);
  EXPECT_EQ(header->epoch, 1u);
}

}  // namespace
}  // namespace remusd::disk
