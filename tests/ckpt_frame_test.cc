// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string_view>

#include "ckpt/frame.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes bytes_of(std::string_view text) {
  const auto view = std::as_bytes(std::span(text));
  return {view.begin(), view.end()};
}

/// Reads the first frame of `stream` with a fresh reader.
Status read_one(std::span<const std::byte> stream, FrameView* frame, size_t* consumed,
                uint64_t generation = 0) {
  FrameReader reader;
  reader.set_generation(generation);
  return reader.next(stream, frame, consumed);
}

class FrameTest : public ::testing::Test {
 protected:
  FrameTest() {
    writer_.set_generation(7);
    writer_.append(FrameType::device, 3, bytes_of("some device state"), &frame_);
  }
  FrameHeader header() const {
    FrameHeader header;
    std::memcpy(&header, frame_.data(), sizeof header);
    return header;
  }
  void set_header(const FrameHeader& header) { std::memcpy(frame_.data(), &header, sizeof header); }
  Status refused_status() {
    FrameView view;
    size_t consumed = 0;
    Status status = read_one(frame_, &view, &consumed);
    EXPECT_EQ(consumed, 0u);
    return status;
  }

  FrameWriter writer_;
  Bytes frame_;
};

TEST_F(FrameTest, FramesComeBackAsTheyWereWritten) {
  Bytes stream = frame_;
  const size_t offset = writer_.begin(&stream);
  const Bytes body = bytes_of("built in place");
  stream.insert(stream.end(), body.begin(), body.end());
  const uint64_t checksum = writer_.finish(offset, FrameType::commit, 3, &stream);
  writer_.append(FrameType::heartbeat, 0, {}, &stream);

  FrameReader reader;
  reader.set_generation(7);
  std::span<const std::byte> rest = stream;
  std::vector<FrameType> types;
  while (!rest.empty()) {
    FrameView view;
    size_t consumed = 0;
    ASSERT_TRUE(reader.next(rest, &view, &consumed).ok());
    ASSERT_GT(consumed, 0u);
    EXPECT_EQ(view.header.generation, 7u);
    EXPECT_EQ(view.header.sequence, types.size());
    if (view.type() == FrameType::commit) {
      EXPECT_EQ(view.header.checksum, checksum);
      EXPECT_EQ(view.header.epoch, 3u);
      EXPECT_TRUE(std::equal(view.body.begin(), view.body.end(), body.begin(), body.end()));
    }
    EXPECT_EQ(view.optional(), view.type() == FrameType::heartbeat);
    types.push_back(view.type());
    rest = rest.subspan(consumed);
  }
  EXPECT_EQ(types, (std::vector{FrameType::device, FrameType::commit, FrameType::heartbeat}));
}

TEST_F(FrameTest, CutAtAnyLengthAsksForMore) {
  for (size_t length = 0; length < frame_.size(); ++length) {
    FrameView view;
    size_t consumed = 1;
    ASSERT_TRUE(read_one(std::span(frame_).first(length), &view, &consumed).ok()) << length;
    EXPECT_EQ(consumed, 0u);
    EXPECT_EQ(view.header.magic, 0u);
  }
}

// Faults 9 and 11. A flipped bit in body_bytes may first ask for more bytes; whatever follows, the frame is
// refused.
TEST_F(FrameTest, AnyFlippedBitIsRefused) {
  Bytes stream = frame_;
  stream.resize(sizeof(FrameHeader) + kMaxBodyBytes + frame_.size());
  for (size_t bit = 0; bit < frame_.size() * 8; ++bit) {
    stream[bit / 8] ^= std::byte{1} << (bit % 8);
    FrameView view;
    size_t consumed = 0;
    ASSERT_FALSE(read_one(stream, &view, &consumed).ok()) << "bit " << bit;
    ASSERT_EQ(consumed, 0u);
    stream[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST_F(FrameTest, AnOversizedBodyIsRefusedFromItsHeader) {
  FrameHeader changed = header();
  for (const uint32_t size : {kMaxBodyBytes + 1, 0x80000000u, 0xffffffffu}) {
    changed.body_bytes = size;
    set_header(changed);
    EXPECT_THAT(refused_status().message(), HasSubstr("larger than"));
  }
}

TEST_F(FrameTest, AStrangerIsToldByItsFirstBytes) {
  FrameView view;
  size_t consumed = 0;
  const Status status = read_one(bytes_of("GE"), &view, &consumed);
  EXPECT_EQ(status.code(), Code::corrupt);
  EXPECT_THAT(status.message(), HasSubstr("magic"));
}

TEST_F(FrameTest, AnOldGenerationIsRefused) {
  FrameView view;
  size_t consumed = 0;
  EXPECT_TRUE(read_one(frame_, &view, &consumed, 7).ok());
  const Status status = read_one(frame_, &view, &consumed, 8);
  EXPECT_THAT(status.message(), HasSubstr("generation 7 is older than this session's 8"));
}

TEST_F(FrameTest, AGenerationNeverFallsWithinADirection) {
  writer_.set_generation(6);
  writer_.append(FrameType::device, 3, {}, &frame_);
  FrameReader reader;
  FrameView view;
  size_t consumed = 0;
  ASSERT_TRUE(reader.next(frame_, &view, &consumed).ok());
  EXPECT_FALSE(reader.next(std::span(frame_).subspan(consumed), &view, &consumed).ok());
}

TEST_F(FrameTest, ARepeatedOrMissingFrameIsRefused) {
  FrameReader reader;
  FrameView view;
  size_t consumed = 0;
  ASSERT_TRUE(reader.next(frame_, &view, &consumed).ok());
  EXPECT_THAT(reader.next(frame_, &view, &consumed).message(), HasSubstr("number 0 came where 1 was due"));

  Bytes later;
  writer_.append(FrameType::device, 3, {}, &later);
  EXPECT_FALSE(read_one(later, &view, &consumed).ok()) << "frame 1 without frame 0";
}

TEST_F(FrameTest, AFailureIsFinal) {
  FrameReader reader;
  FrameView view;
  size_t consumed = 0;
  EXPECT_FALSE(reader.next(bytes_of("nonsense"), &view, &consumed).ok());
  EXPECT_FALSE(reader.next(frame_, &view, &consumed).ok());
}

TEST_F(FrameTest, UnknownMandatoryTypesAreRefusedAndOptionalOnesPassedOn) {
  FrameView view;
  size_t consumed = 0;
  for (const int type : {0, 15, 31, 47, 0x7fff}) {
    FrameWriter writer;
    Bytes stream;
    writer.append(static_cast<FrameType>(type), 0, {}, &stream);
    EXPECT_EQ(read_one(stream, &view, &consumed).code(), Code::unsupported) << type;
  }
  FrameWriter writer;
  Bytes stream;
  writer.append(static_cast<FrameType>(0x8123), 0, {}, &stream);
  ASSERT_TRUE(read_one(stream, &view, &consumed).ok());
  EXPECT_TRUE(view.optional());
  EXPECT_FALSE(is_known(view.header.type));
}

TEST_F(FrameTest, FlagsAreRefused) {
  FrameHeader changed = header();
  changed.flags = 1;
  set_header(changed);
  EXPECT_THAT(refused_status().message(), HasSubstr("flags"));
}

TEST_F(FrameTest, TheLargestBodyPasses) {
  const Bytes body(kMaxBodyBytes, std::byte{0x5a});
  FrameWriter writer;
  Bytes stream;
  writer.append(FrameType::pages, 1, body, &stream);
  FrameView view;
  size_t consumed = 0;
  ASSERT_TRUE(read_one(stream, &view, &consumed).ok());
  EXPECT_EQ(view.body.size(), body.size());
}

TEST_F(FrameTest, RandomBytesNeverPass) {
  std::mt19937_64 random(20240101);
  Bytes stream(256);
  for (int round = 0; round < 100'000; ++round) {
    for (std::byte& byte : stream) byte = static_cast<std::byte>(random());
    if (round % 2 == 1) {  // get past the first checks
      FrameHeader plausible = header();
      plausible.body_bytes = static_cast<uint32_t>(random() % 300);
      plausible.sequence = 0;
      plausible.checksum = random();
      std::memcpy(stream.data(), &plausible, sizeof plausible);
    }
    FrameView view;
    size_t consumed = 0;
    (void)read_one(std::span(stream).first(random() % stream.size()), &view, &consumed);
    ASSERT_EQ(consumed, 0u);
  }
}

TEST(EpochDigestTest, OrderAndEveryFrameMatter) {
  const auto digest = [](std::initializer_list<uint64_t> checksums) {
    EpochDigest chain;
    for (const uint64_t checksum : checksums) chain.add(checksum);
    return chain.value();
  };
  EXPECT_EQ(digest({}), 0u);
  EXPECT_EQ(digest({1, 2}), digest({1, 2}));
  EXPECT_NE(digest({1, 2}), digest({2, 1}));
  EXPECT_NE(digest({1}), digest({1, 0}));
  EpochDigest chain;
  chain.add(5);
  EXPECT_EQ(chain.frames(), 1u);
  chain.reset();
  EXPECT_EQ(chain.value(), 0u);
  EXPECT_EQ(chain.frames(), 0u);
}

}  // namespace
}  // namespace remusd::ckpt
