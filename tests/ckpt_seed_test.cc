// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "ckpt/frame.h"
#include "ckpt/seed.h"
#include "tests/ckpt_encoded.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;

Bytes digests(size_t pages) {
  Bytes bytes(pages * sizeof(PageDigest));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  return bytes;
}

Bytes seed_body(const PageSet& runs, size_t digest_count, bool last = false) {
  const Bytes told = digests(digest_count);
  Seed seed;
  seed.key.fill(std::byte{7});
  seed.runs = runs;
  seed.last = last;
  seed.digests = told;
  return encoded(seed);
}
Bytes keep_body(const PageSet& runs) {
  return encoded(Keep{runs, {1, 2}});
}

Result<Bytes> again(View body, bool is_seed) {
  if (is_seed) {
    Seed seed;
    REMUSD_TRY(decode(body, &seed));
    return encoded(seed);
  }
  Keep keep;
  REMUSD_TRY(decode(body, &keep));
  return encoded(keep);
}
std::string refusal(const Bytes& body, bool is_seed) {
  const auto result = again(body, is_seed);
  if (result.ok()) return "";
  EXPECT_EQ(result.status().code(), Code::corrupt);
  return result.status().message();
}

TEST(SeedTest, ARecordComesBackAsItWasWrittenAndNeitherCutNorLongerNorBent) {
  const PageSet runs{{3, 2}, {5, 1}, {4000000000000, 3}};
  for (const bool is_seed : {true, false}) {
    Bytes body = is_seed ? seed_body(runs, 6) : keep_body(runs);
    ASSERT_TRUE(again(body, is_seed).ok()) << refusal(body, is_seed);
    EXPECT_EQ(*again(body, is_seed), body);
    for (size_t length = 0; length < body.size(); ++length)
      EXPECT_FALSE(again(View(body).first(length), is_seed).ok()) << length;
    for (size_t bit = 0; bit < body.size() * 8; ++bit) {
      Bytes bent = body;
      bent[bit / 8] ^= std::byte{1} << (bit % 8);
      if (const auto result = again(bent, is_seed); result.ok()) {
        EXPECT_EQ(*result, bent) << bit;
      }
    }
    body.push_back(std::byte{0});
    EXPECT_THAT(refusal(body, is_seed), HasSubstr("too many"));
  }
}

TEST(SeedTest, PagesRiseAndAreNoMoreThanAFrameMayTell) {
  const uint64_t all = kMaxSeedPages;
  EXPECT_EQ(refusal(seed_body({{0, all}}, all), true), "");
  EXPECT_EQ(refusal(keep_body({{0, all}}), false), "");
  for (const PageSet& runs : {PageSet{{0, all + 1}}, PageSet{{0, all}, {all, 1}}, PageSet{{5, 0}},
                              PageSet{{5, 2}, {6, 1}}, PageSet{{5, 2}, {4, 1}}, PageSet{{5, 1}, {5, 1}},
                              PageSet{{UINT64_MAX, 1}}, PageSet{{5, UINT64_MAX}}}) {
    SCOPED_TRACE(std::to_string(runs.back().first) + " + " + std::to_string(runs.back().count));
    EXPECT_NE(refusal(seed_body(runs, page_count(runs) % (2 * all)), true), "");
    EXPECT_NE(refusal(keep_body(runs), false), "");
  }
  EXPECT_NE(refusal(keep_body({}), false), "") << "nothing is kept: nothing is to be said";
  EXPECT_NE(refusal(seed_body({}, 0), true), "") << "a frame that tells nothing could come for ever";
  EXPECT_EQ(refusal(seed_body({}, 0, /*last=*/true), true), "");
}

TEST(SeedTest, TheLargestRecordFitsIntoAFrame) {
  PageSet scattered;
  for (uint64_t i = 0; i < kMaxSeedPages; ++i) scattered.push_back({2 * i, 1});
  EXPECT_LT(seed_body(scattered, scattered.size()).size(), kMaxBodyBytes / 8);
  EXPECT_EQ(refusal(seed_body(scattered, scattered.size()), true), "");
}

TEST(SeedTest, ADigestIsOfTheContentAndOfTheKey) {
  const DigestKey key = make_digest_key(), other = make_digest_key();
  EXPECT_NE(key, other);
  Bytes page(kPageSize);
  const PageDigest zero = digest_of(key, page);
  EXPECT_EQ(digest_of(key, page), zero);
  EXPECT_FALSE(digest_of(other, page) == zero);
  for (size_t at = 0; at < page.size(); ++at) {
    page[at] = std::byte{1};
    EXPECT_FALSE(digest_of(key, page) == zero) << at;
    page[at] = std::byte{0};
  }
}

TEST(SeedTest, AReaderKnowsTheTypes) {
  for (const FrameType type : {FrameType::seed, FrameType::keep}) {
    FrameWriter writer;
    FrameReader reader;
    Bytes bytes;
    writer.append(type, 0, {}, &bytes);
    FrameView frame;
    size_t consumed = 0;
    EXPECT_TRUE(reader.next(bytes, &frame, &consumed).ok());
    EXPECT_EQ(frame.type(), type);
  }
}

}  // namespace
}  // namespace remusd::ckpt
