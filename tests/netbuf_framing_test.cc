// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "netbuf/framing.h"

namespace remusd::netbuf {
namespace {

using Bytes = std::vector<std::byte>;

Bytes stream_of(size_t claimed, size_t given) {
  Bytes stream(kLengthBytes + given, std::byte{7});
  put_length(claimed, stream.data());
  return stream;
}

Framing found_in(const Bytes& stream) {
  std::span<const std::byte> frame;
  return next_frame(stream, &frame);
}

TEST(NetbufFramingTest, AFrameIsWhereItsLengthSays) {
  const Bytes stream = stream_of(0x0102, 0x0102 + 9);
  EXPECT_EQ(stream[0], std::byte{0});
  EXPECT_EQ(stream[2], std::byte{1});
  EXPECT_EQ(stream[3], std::byte{2});
  std::span<const std::byte> frame;
  ASSERT_EQ(next_frame(stream, &frame), Framing::whole);
  EXPECT_EQ(frame.data(), stream.data() + kLengthBytes);
  EXPECT_EQ(frame.size(), 0x0102u);
}

TEST(NetbufFramingTest, WhatIsNotWholeYetIsWaitedFor) {
  EXPECT_EQ(found_in({}), Framing::partial);
  EXPECT_EQ(found_in(Bytes(kLengthBytes - 1)), Framing::partial);
  EXPECT_EQ(found_in(stream_of(1, 0)), Framing::partial);
  EXPECT_EQ(found_in(stream_of(0, 0)), Framing::whole);
  EXPECT_EQ(found_in(stream_of(kMaxFrameBytes, kMaxFrameBytes - 1)), Framing::partial);
  EXPECT_EQ(found_in(stream_of(kMaxFrameBytes, kMaxFrameBytes)), Framing::whole);
}

TEST(NetbufFramingTest, NoLengthIsTrustedBeyondTheLargestFrame) {
  EXPECT_EQ(found_in(stream_of(kMaxFrameBytes + 1, 0)), Framing::corrupt);
  EXPECT_EQ(found_in(stream_of(0xffffffff, 0)), Framing::corrupt);
}

}  // namespace
}  // namespace remusd::netbuf
