// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "disk/dirty_map.h"
#include "tests/assert_ok.h"
#include "tests/disk_power.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;

constexpr uint64_t kRegion = DirtyMap::kLeastRegionBytes;
constexpr std::array<uint64_t, 2> kMapDisks{200 * kRegion + 512, 40000 * kRegion};
constexpr ckpt::SessionId kNoPoint{}, kPoint{1}, kOtherPoint{2};

class DiskDirtyMap : public testing::Test {
 protected:
  void SetUp() override {
    file_ = power_.add("map", DirtyMap::file_bytes_for(kMapDisks));
    open();
  }
  void open() {
    auto opened = DirtyMap::open(*file_, kMapDisks, files_);
    ASSERT_OK(opened);
    map_ = std::move(*opened);
  }
  void begin(const ckpt::SessionId& point = kPoint) {
    map_->begin_session();
    ASSERT_OK(map_->begin(point));
  }
  uint64_t total() const { return 201 + 40000; }
  bool stored(size_t disk, uint64_t offset) {
    bool found = false;
    map_->for_each({}, [&](size_t number, uint64_t begin, uint64_t bytes) {
      found = found || (number == disk && offset >= begin && offset < begin + bytes);
    });
    return found;
  }

  DirtyMap::Files files_{7, 100};
  Power power_;
  std::shared_ptr<PowerMedium> file_;
  std::unique_ptr<DirtyMap> map_;
};

TEST_F(DiskDirtyMap, AFileThatHoldsNoMapStandsForEverything) {
  EXPECT_EQ(map_->stored_regions(), total());
  uint64_t bytes = 0;
  map_->for_each({}, [&](size_t, uint64_t, uint64_t run) { bytes += run; });
  EXPECT_EQ(bytes, kMapDisks[0] + kMapDisks[1]);
  EXPECT_EQ(map_->point(), kNoPoint);
  EXPECT_TRUE(map_->touch(0, 0, 1)) << "everything may differ: there is nothing to store";
}

TEST_F(DiskDirtyMap, AWriteWaitsOnceForItsRegion) {
  begin();
  EXPECT_EQ(map_->stored_regions(), 0u);
  EXPECT_FALSE(map_->touch(1, 3 * kRegion - 1, 2));
  ASSERT_OK(map_->store());
  const uint64_t operations = power_.operations();
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(map_->touch(1, 3 * kRegion - 1, 2));
  ASSERT_OK(map_->store());
  EXPECT_EQ(power_.operations(), operations) << "a hot region costs nothing";
  EXPECT_EQ(map_->stored_regions(), 2u);
  EXPECT_FALSE(map_->touch(0, kMapDisks[0] - 512, 512)) << "the last region may be short";
}

TEST_F(DiskDirtyMap, ARegionIsFreedTwoTurnsAfterItsLastWriteIsCommitted) {
  begin();
  map_->touch(0, 0, 512);
  map_->touch(0, kRegion, 512);
  ASSERT_OK(map_->store());
  EXPECT_TRUE(map_->turn(10, 5));
  EXPECT_FALSE(map_->turn(20, 9)) << "epoch 10 is not committed";
  EXPECT_TRUE(map_->touch(0, 0, 512));
  EXPECT_TRUE(map_->turn(20, 10));
  EXPECT_TRUE(map_->turn(30, 20));
  EXPECT_TRUE(stored(0, 0));
  EXPECT_FALSE(stored(0, kRegion));
  EXPECT_FALSE(map_->touch(0, kRegion, 512)) << "it was freed";
  ASSERT_OK(map_->store());
  EXPECT_TRUE(map_->touch(0, kRegion, 512));
}

TEST_F(DiskDirtyMap, DisksOfOtherSizesAreDirtyAllOver) {
  begin();
  open();
  EXPECT_EQ(map_->stored_regions(), 0u);
  const std::array<uint64_t, 1> other{kMapDisks[1]};
  auto opened = DirtyMap::open(*file_, other, files_);
  ASSERT_OK(opened);
  EXPECT_EQ((*opened)->stored_regions(), 40000u);
  EXPECT_EQ((*opened)->point(), kNoPoint);
}

TEST_F(DiskDirtyMap, OtherFilesOrFilesThatSomebodyWroteToHaveNoPoint) {
  begin();
  open();
  EXPECT_EQ(map_->point(), kPoint) << "it was not left in order: it counts";
  ASSERT_OK(map_->leave(100));
  open();
  EXPECT_EQ(map_->point(), kPoint);
  ASSERT_OK(map_->leave(100));
  files_.look = 101;
  open();
  EXPECT_EQ(map_->point(), kNoPoint);
  EXPECT_EQ(map_->stored_regions(), total());
  files_.look = 100;
  open();
  EXPECT_EQ(map_->point(), kNoPoint) << "once forgotten, it is";

  begin();
  files_.identity = 8;
  open();
  EXPECT_EQ(map_->point(), kNoPoint);
}

TEST_F(DiskDirtyMap, ASessionsPointKeepsWhatWasTouchedSinceItBegan) {
  begin();
  EXPECT_FALSE(map_->touch(0, 0, 512));
  ASSERT_OK(map_->store());
  map_->begin_session();
  EXPECT_FALSE(map_->touch(0, kRegion, 512)) << "the old point counts until there is a new one";
  EXPECT_FALSE(map_->turn(2, 1)) << "what is not begun has no turns";
  ASSERT_OK(map_->begin(kOtherPoint));
  EXPECT_EQ(map_->point(), kOtherPoint);
  EXPECT_FALSE(stored(0, 0));
  EXPECT_TRUE(stored(0, kRegion));
  EXPECT_TRUE(map_->touch(0, kRegion, 512));
}

TEST_F(DiskDirtyMap, TwoMapsOfTheSameDisksAreSeenTogether) {
  begin();
  map_->touch(0, 0, 512);
  Bytes theirs = map_->bits();
  begin();
  map_->touch(0, kRegion, 512);
  map_->touch(1, 0, 512);
  std::vector<std::array<uint64_t, 3>> runs;
  map_->for_each(theirs, [&](size_t disk, uint64_t offset, uint64_t bytes) {
    runs.push_back({disk, offset, bytes});
  });
  EXPECT_THAT(runs, testing::ElementsAre(std::array<uint64_t, 3>{0, 0, 2 * kRegion},
                                         std::array<uint64_t, 3>{1, 0, kRegion}));
}

TEST_F(DiskDirtyMap, MemoryAndFileAreBoundedForTheLargestDisks) {
  const std::vector<uint64_t> all(kMaxDisks, kMaxDiskBytes), one(1, kMaxDiskBytes), small(1, 9ULL << 40);
  EXPECT_EQ(DirtyMap::region_bytes_for(small), kRegion);
  EXPECT_EQ(DirtyMap::region_bytes_for(one), 2u << 20);
  EXPECT_EQ(DirtyMap::region_bytes_for(all), 32u << 20);
  EXPECT_LE(DirtyMap::file_bytes_for(all), DirtyMap::kMostMemoryBytes / 6 + 4096);
}

/// A point stands for everything that may have been written since its session began and is not committed.
TEST_F(DiskDirtyMap, LosingPowerNeverLosesARegionThatMayHaveBeenWritten) {
  int lost = 0, second = 0;
  for (uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    begin();
    power_.cut_at(random() % 60);
    std::map<std::pair<size_t, uint64_t>, uint64_t> written;  // the last epoch that did
    uint64_t epoch = 1, committed = 0, since = 0;
    const uint64_t session_at = random() % 50, begun_at = session_at + random() % 10;
    Status status;
    while (status.ok() && epoch < 60) {
      if (epoch == session_at) {
        map_->begin_session();
        since = epoch;
      }
      for (int i = 0; i < 4; ++i) {
        const size_t disk = random() % 2;
        const uint64_t region = random() % (disk == 0 ? 40 : random() % 4 == 0 ? 40000 : 8);
        if (map_->touch(disk, region * kRegion, 512)) written[{disk, region}] = epoch;
      }
      if (random() % 2 == 0) status = map_->store();
      if (since == 0 && random() % 3 == 0) committed = std::max(committed, epoch - random() % 3);
      if (random() % 8 == 0) map_->turn(epoch + 1, committed);
      if (status.ok() && since > 0 && epoch == begun_at) status = map_->begin(kOtherPoint);
      ++epoch;
    }
    lost += power_.off() ? 1 : 0;
    power_.cycle(seed);
    open();
    const uint64_t from = map_->point() == kOtherPoint ? since : 0;
    second += from > 0 ? 1 : 0;
    std::set<std::pair<size_t, uint64_t>> found;
    map_->for_each({}, [&](size_t disk, uint64_t offset, uint64_t bytes) {
      for (uint64_t at = offset; at < offset + bytes; at += kRegion) found.insert({disk, at / kRegion});
    });
    for (const auto& [place, when] : written)
      ASSERT_TRUE(when <= committed || when < from || found.contains(place))
          << "seed " << seed << " region " << place.second;
  }
  EXPECT_GT(lost, 100);
  EXPECT_GT(second, 20);
}

TEST_F(DiskDirtyMap, AFailureIsToldAndNothingIsReadyAfterIt) {
  begin();
  power_.fail_at(1, EIO);
  EXPECT_FALSE(map_->touch(0, 0, 512));
  EXPECT_THAT(map_->store().message(), testing::HasSubstr("Input/output"));
  EXPECT_FALSE(map_->touch(0, 0, 512));
  EXPECT_FALSE(map_->touch(1, 39000 * kRegion, 512));
  EXPECT_THAT(map_->store().message(), testing::HasSubstr("Input/output")) << "it is not tried again";
  EXPECT_FALSE(map_->touch(0, 0, 512));
  ASSERT_OK(map_->forget());
  EXPECT_TRUE(map_->touch(0, 0, 512)) << "without a point nothing waits";
  open();
  EXPECT_EQ(map_->point(), kNoPoint);
}

}  // namespace
}  // namespace remusd::disk
