// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>

#include "disk/epoch_log.h"
#include "tests/assert_ok.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;
using ckpt::View;

constexpr uint64_t kDiskBytes = 64 << 10;
constexpr std::array<uint64_t, 2> kSizes{kDiskBytes, kDiskBytes};
using Image = std::array<Bytes, 2>;

Image blank() {
  return {Bytes(kDiskBytes, std::byte{0xee}), Bytes(kDiskBytes, std::byte{0xee})};
}

void apply(const Change& change, View data, Image* image) {
  std::byte* at = (*image)[change.disk].data() + change.offset;
  if (change.kind == ChangeKind::write) {
    std::memcpy(at, data.data(), data.size());
  } else {
    std::memset(at, 0, change.bytes);
  }
}

/// Everything that the log has, over `image`; how many bytes it said it changes.
uint64_t drain(EpochLog* log, Image* image) {
  ckpt::DiskBody body;
  uint64_t all = 0, raw_bytes = 0;
  for (Bytes out; log->take(&body, &out, &raw_bytes); out.clear()) {
    uint64_t checked = 0;
    EXPECT_TRUE(ckpt::check_disk(out, kSizes, &checked).ok());
    EXPECT_EQ(checked, raw_bytes);
    EXPECT_LE(out.size(), ckpt::kMaxBodyBytes);
    EXPECT_TRUE(ckpt::apply_disk(out, [&](const ckpt::DiskRun& run) {
                  const bool zeros = run.encoding != ckpt::DiskEncoding::raw;
                  apply({run.disk, zeros ? ChangeKind::zero : ChangeKind::write, run.offset, run.bytes},
                        run.data, image);
                  return Status();
                }).ok());
    all += raw_bytes;
  }
  return all;
}

TEST(EpochLog, WhatIsOverwrittenIsSentOnce) {
  EpochLog log;
  EXPECT_TRUE(log.empty());
  for (int i = 0; i < 100; ++i) log.add({0, ChangeKind::write, 4096, 4096}, Bytes(4096, std::byte(i)));
  EXPECT_EQ(log.written_bytes(), 100 * 4096u);
  EXPECT_LT(log.held_bytes(), 2u << 20) << "and kept once";
  Image image = blank();
  EXPECT_EQ(drain(&log, &image), 4096u);
  EXPECT_EQ(drain(&log, &image), 0u);
  EXPECT_EQ(image[0][4096], std::byte{99});
}

TEST(EpochLog, WhatWasTakenIsStillThereForWhoeverWritesIt) {
  EpochLog log;
  for (size_t disk = 0; disk < 2; ++disk)
    log.add({disk, ChangeKind::write, 512, 1024}, Bytes(1024, std::byte{7}));
  log.add({1, ChangeKind::punch, 1024, 8192}, {});
  Image image = blank();
  EXPECT_EQ(drain(&log, &image), 1024u + 512 + 8192);
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  const Status status = log.each(0b10, [&](const Change& run, const std::byte* data) {
    EXPECT_EQ(run.disk, 1u);
    EXPECT_EQ(data != nullptr, run.kind == ChangeKind::write);
    seen.emplace_back(run.offset, run.bytes);
    return Status();
  });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(seen, (std::vector<std::pair<uint64_t, uint64_t>>{{512, 512}, {1024, 8192}}));
  EXPECT_TRUE(log.touches(0b01));
  EXPECT_FALSE(log.touches(0b100));
}

TEST(EpochLog, ALargeChangeGoesInPiecesThatFitAFrame) {
  EpochLog log;
  constexpr uint64_t kLarge = 5u << 20;
  log.add({1, ChangeKind::punch, 0, kLarge}, {});
  std::mt19937 random(1);
  Bytes noise(kLarge);
  for (std::byte& byte : noise) byte = static_cast<std::byte>(random());
  log.add({0, ChangeKind::write, 7, kLarge}, noise);
  ckpt::DiskBody body;
  uint64_t raw_bytes = 0, all = 0;
  const std::array<uint64_t, 2> sizes{kLarge + 7, kLarge};
  Bytes copy(kLarge + 7);
  for (Bytes out; log.take(&body, &out, &raw_bytes); out.clear()) {
    uint64_t checked = 0;
    ASSERT_OK(ckpt::check_disk(out, sizes, &checked));
    ASSERT_OK(ckpt::apply_disk(out, [&](const ckpt::DiskRun& run) {
      if (run.disk == 0) std::memcpy(copy.data() + run.offset, run.data.data(), run.bytes);
      return Status();
    }));
    all += raw_bytes;
  }
  EXPECT_EQ(all, 2 * kLarge);
  EXPECT_EQ(std::memcmp(copy.data() + 7, noise.data(), kLarge), 0);
}

TEST(EpochLog, LeavesWhatTheChangesInOrderWouldLeave) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    std::mt19937 random(seed);
    EpochLog log;
    Image expected = blank(), image = blank();
    const int changes = 1 + static_cast<int>(random() % 60);
    for (int i = 0; i < changes; ++i) {
      Change change;
      change.disk = random() % 2;
      change.kind = static_cast<ChangeKind>(std::min<uint64_t>(random() % 5, 2));
      const bool blocks = random() % 2 == 0;
      change.offset = blocks ? random() % 15 * 4096 : random() % (kDiskBytes - 1);
      change.bytes = blocks ? 4096 : 1 + random() % std::min<uint64_t>(9000, kDiskBytes - change.offset);
      Bytes data(change.kind == ChangeKind::write ? change.bytes : 0, static_cast<std::byte>(random()));
      log.add(change, data);
      apply(change, data, &expected);
    }
    drain(&log, &image);
    ASSERT_EQ(image, expected) << "seed " << seed;
  }
}

}  // namespace
}  // namespace remusd::disk
