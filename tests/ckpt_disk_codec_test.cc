// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "ckpt/disk_codec.h"
#include "ckpt/wire.h"
#include "tests/assert_ok.h"

namespace remusd::ckpt {
namespace {

using testing::HasSubstr;

constexpr std::array<uint64_t, 2> kDisks{8u << 20, 64u << 10};

Bytes noise(size_t size, uint32_t seed = 1) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

struct Disks {
  std::array<Bytes, 2> content{Bytes(kDisks[0], std::byte{7}), Bytes(kDisks[1], std::byte{7})};
  std::vector<DiskEncoding> seen;

  Status apply(const DiskRun& run) {
    seen.push_back(run.encoding);
    std::byte* at = content[run.disk].data() + run.offset;
    if (run.encoding == DiskEncoding::raw) {
      std::memcpy(at, run.data.data(), run.bytes);
    } else {
      std::memset(at, 0, run.bytes);
    }
    return {};
  }
};

Bytes body_of(const DiskRun& run) {
  DiskBody body;
  EXPECT_TRUE(body.add(run));
  Bytes out;
  body.take(&out);
  return out;
}

Bytes small_body() {
  static const Bytes data = noise(100);
  return body_of({1, 512, 100, DiskEncoding::raw, data});
}

Status check(View body) {
  uint64_t bytes = 0;
  return check_disk(body, kDisks, &bytes);
}

TEST(DiskCodec, RunsComeBackInOrderAsTheyWere) {
  const Bytes random = noise(5000), zeros(3000), text(70000, std::byte{'a'});
  DiskBody body;
  EXPECT_TRUE(body.empty());
  EXPECT_TRUE(body.add({0, 1, 5000, DiskEncoding::raw, random}));
  EXPECT_TRUE(body.add({0, 100, 3000, DiskEncoding::raw, zeros}));
  EXPECT_TRUE(body.add({0, 1u << 20, 70000, DiskEncoding::raw, text}));
  EXPECT_TRUE(body.add({1, 0, 4096, DiskEncoding::hole, {}}));
  EXPECT_TRUE(body.add({1, 60u << 10, 4096, DiskEncoding::zero, {}}));
  EXPECT_EQ(body.raw_bytes(), 5000 + 3000 + 70000 + 4096 + 4096u);
  Bytes out;
  body.take(&out);
  EXPECT_TRUE(body.empty());
  EXPECT_LT(out.size(), 5000 + 2000u) << "zeros and repeats cost next to nothing";

  uint64_t bytes = 0;
  ASSERT_OK(check_disk(out, kDisks, &bytes));
  EXPECT_EQ(bytes, 5000 + 3000 + 70000 + 4096 + 4096u);
  ASSERT_OK(verify_disk(out));
  Disks disks, expected;
  ASSERT_OK(apply_disk(out, [&](const DiskRun& run) { return disks.apply(run); }));
  EXPECT_THAT(disks.seen, testing::ElementsAre(DiskEncoding::raw, DiskEncoding::zero, DiskEncoding::raw,
                                               DiskEncoding::hole, DiskEncoding::zero));
  (void)expected.apply({0, 1, 5000, DiskEncoding::raw, random});
  (void)expected.apply({0, 100, 3000, DiskEncoding::raw, zeros});
  (void)expected.apply({0, 1u << 20, 70000, DiskEncoding::raw, text});
  (void)expected.apply({1, 0, 4096, DiskEncoding::zero, {}});
  (void)expected.apply({1, 60u << 10, 4096, DiskEncoding::zero, {}});
  EXPECT_EQ(disks.content, expected.content);
}

TEST(DiskCodec, ABodyIsFullBeforeItIsLargerThanAFrame) {
  const Bytes random = noise(kMaxDiskRunBytes);
  DiskBody body;
  EXPECT_TRUE(body.add({0, 0, kMaxDiskRunBytes, DiskEncoding::raw, random}));
  EXPECT_FALSE(body.add({0, 0, kMaxDiskRunBytes, DiskEncoding::raw, random}));
  Bytes out;
  body.take(&out);
  EXPECT_LE(out.size(), kMaxBodyBytes);
  ASSERT_OK(check(out));

  uint32_t runs = 0;
  const auto add_hole = [&] { return body.add({0, runs * 512, 512, DiskEncoding::hole, {}}); };
  for (; runs < kMaxDiskRunsPerFrame - 7; ++runs) ASSERT_TRUE(add_hole());
  EXPECT_FALSE(body.add({0, 0, kMaxDiskRunBytes, DiskEncoding::raw, random})) << "it may become 8 entries";
  while (add_hole()) ++runs;
  EXPECT_EQ(runs, kMaxDiskRunsPerFrame);
}

TEST(DiskCodec, ALongRunIsEncodedPieceByPiece) {
  constexpr uint32_t kPiece = 128u << 10;
  const Bytes random = noise(kPiece), zeros(kPiece), text(kPiece, std::byte{'a'});
  Bytes data;
  for (const Bytes* piece : {&random, &random, &zeros, &zeros, &text, &random}) put_bytes(*piece, &data);
  put_bytes(View(text).first(100), &data);
  const Bytes out = body_of({0, 512, static_cast<uint32_t>(data.size()), DiskEncoding::raw, data});
  EXPECT_LT(out.size(), 3 * kPiece + 2000);

  Bytes decoded(512);
  std::vector<std::pair<DiskEncoding, uint32_t>> seen;
  ASSERT_OK(check(out));
  ASSERT_OK(verify_disk(out));
  ASSERT_OK(apply_disk(out, [&](const DiskRun& run) -> Status {
    EXPECT_EQ(run.offset, decoded.size());
    seen.emplace_back(run.encoding, run.bytes);
    if (run.encoding == DiskEncoding::raw)
      put_bytes(run.data, &decoded);
    else
      decoded.resize(decoded.size() + run.bytes);
    return {};
  }));
  // Alike neighbours are one entry; lz4 comes out of it as raw.
  EXPECT_THAT(seen, testing::ElementsAre(
                        std::pair(DiskEncoding::raw, 2 * kPiece), std::pair(DiskEncoding::zero, 2 * kPiece),
                        std::pair(DiskEncoding::raw, kPiece), std::pair(DiskEncoding::raw, kPiece + 100)));
  EXPECT_TRUE(std::equal(data.begin(), data.end(), decoded.begin() + 512, decoded.end()));
}

TEST(DiskCodec, APieceThatBeginsWithNoiseGoesAsItIs) {
  Bytes data = noise(128u << 10);
  std::fill(data.begin() + (64 << 10), data.end(), std::byte{'a'});
  EXPECT_GT(body_of({0, 0, 128u << 10, DiskEncoding::raw, data}).size(), data.size()) << "lz4 is not asked";
  std::reverse(data.begin(), data.end());
  EXPECT_LT(body_of({0, 0, 128u << 10, DiskEncoding::raw, data}).size(), (64u << 10) + 1000);
}

TEST(DiskCodec, AFailureOfTheDiskStopsAndIsHandedOn) {
  DiskBody body;
  EXPECT_TRUE(body.add({0, 0, 512, DiskEncoding::hole, {}}));
  EXPECT_TRUE(body.add({0, 512, 512, DiskEncoding::hole, {}}));
  Bytes out;
  body.take(&out);
  int calls = 0;
  const Status status = apply_disk(out, [&](const DiskRun&) {
    ++calls;
    return Status(Code::io, "the disk is full");
  });
  EXPECT_EQ(status.message(), "the disk is full");
  EXPECT_EQ(calls, 1);
}

TEST(DiskCodec, EveryCutIsRefused) {
  const Bytes whole = small_body();
  ASSERT_OK(check(whole));
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_EQ(check(View(whole).first(size)).code(), Code::corrupt) << size;
  }
  Bytes longer = whole;
  longer.push_back(std::byte{0});
  EXPECT_THAT(check(longer).message(), HasSubstr("do not fill"));
}

TEST(DiskCodec, WhatDoesNotFitTheGuestsDisksIsRefused) {
  struct Case {
    size_t at;
    uint64_t value;
    size_t size;
    const char* why;
  };
  for (const Case& one :
       {Case{0, 0, 4, "count 0"}, Case{0, 1025, 4, "count 1025"}, Case{4, 1, 4, "reserved"},
        Case{8, kDisks[1] - 99, 8, "outside"}, Case{8, UINT64_MAX - 10, 8, "outside"},
        Case{16, 0, 4, "empty"}, Case{16, kMaxDiskRunBytes + 1, 4, "too long"},
        Case{16, 99, 4, "another length"}, Case{24, 2, 2, "does not have"}, Case{26, 0, 1, "has a payload"},
        Case{26, 2, 1, "not made smaller"}, Case{26, 4, 1, "unknown encoding"}, Case{27, 1, 1, "reserved"}}) {
    Bytes body = small_body();
    std::memcpy(body.data() + one.at, &one.value, one.size);
    const Status status = check(body);
    EXPECT_EQ(status.code(), Code::corrupt) << one.at;
    EXPECT_THAT(status.message(), HasSubstr(one.why));
  }
}

TEST(DiskCodec, AnLz4BlockThatDecodesToAnotherLengthIsFoundBeforeItIsApplied) {
  const Bytes text(4096, std::byte{'a'});
  Bytes body = body_of({0, 0, 4096, DiskEncoding::raw, text});
  uint32_t bytes = 4095;
  std::memcpy(body.data() + 16, &bytes, sizeof bytes);
  ASSERT_OK(check(body));
  EXPECT_EQ(verify_disk(body).code(), Code::corrupt);
  bytes = 4097;
  std::memcpy(body.data() + 16, &bytes, sizeof bytes);
  EXPECT_EQ(verify_disk(body).code(), Code::corrupt);
}

}  // namespace
}  // namespace remusd::ckpt
