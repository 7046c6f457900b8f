// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ckpt/disk_digest.h"
#include "tests/ckpt_encoded.h"

namespace remusd::ckpt {
namespace {

template <typename Record>
void expect_comes_back(const Record& record) {
  const Bytes body = encoded(record);
  Record again;
  ASSERT_TRUE(decode(body, &again).ok()) << decode(body, &again).message();
  EXPECT_EQ(encoded(again), body);
  for (size_t length = 0; length < body.size(); ++length)
    EXPECT_EQ(decode(View(body).first(length), &again).code(), Code::corrupt) << length;
  Bytes longer = body;
  longer.push_back(std::byte{});
  EXPECT_EQ(decode(longer, &again).code(), Code::corrupt);
}

DiskTell blocks_told(uint64_t bytes, View digests) {
  DiskTell tell;
  tell.kind = DiskAskKind::blocks;
  tell.offset = 2 * kDiskBlockBytes;
  tell.bytes = bytes;
  tell.epoch = 9;
  tell.data = digests;
  return tell;
}

TEST(DiskDigestTest, RecordsComeBackAsTheyWereWrittenAndNeitherCutNorLonger) {
  const Bytes digests(3 * sizeof(PageDigest), std::byte{5});
  expect_comes_back(DiskAsk{DiskAskKind::map, 0, 1u << 20, 0, make_digest_key()});
  expect_comes_back(DiskAsk{DiskAskKind::blocks, 3, 12288, 512, make_digest_key()});
  expect_comes_back(blocks_told(2 * kDiskBlockBytes + 512, digests));
  DiskTell zeros = blocks_told(uint64_t{1} << 40, {});
  zeros.zeros = true;
  expect_comes_back(zeros);
  DiskTell map;
  map.point = {1, 2, 3};
  map.region_bytes = 1u << 20;
  map.data = digests;
  map.bytes = digests.size();
  expect_comes_back(map);
}

TEST(DiskDigestTest, WhatNoPeerMayTellIsRefused) {
  const auto refused = [](const auto& record) {
    auto again = record;
    return decode(encoded(record), &again).code() == Code::corrupt;
  };
  EXPECT_TRUE(refused(DiskAsk{DiskAskKind::blocks, 0, 512, 512, {}})) << "not at a block";
  EXPECT_TRUE(refused(DiskAsk{DiskAskKind::blocks, 0, 0, 0, {}}));
  EXPECT_TRUE(refused(DiskAsk{DiskAskKind::map, 1, 0, 0, {}}));
  EXPECT_TRUE(refused(DiskAsk{DiskAskKind::map, 0, 0, 1, {}}));
  EXPECT_TRUE(refused(DiskAsk{static_cast<DiskAskKind>(2), 0, 0, 1, {}}));
  const Bytes digests((kMaxDiskBlocksTold + 1) * sizeof(PageDigest));
  EXPECT_TRUE(refused(blocks_told(0, {})));
  EXPECT_TRUE(refused(blocks_told((kMaxDiskBlocksTold + 1) * kDiskBlockBytes, digests)));
  EXPECT_TRUE(refused(blocks_told(kDiskBlockBytes, View(digests).first(2 * sizeof(PageDigest)))));
  DiskTell map;
  map.region_bytes = 512;
  EXPECT_TRUE(refused(map)) << "regions are not smaller than blocks";
}

}  // namespace
}  // namespace remusd::ckpt
