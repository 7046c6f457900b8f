// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cerrno>

#include "disk/nbd_request.h"

namespace remusd::disk::nbd {
namespace {

constexpr uint64_t kDisk = 1 << 20;
const Terms kTerms{kDisk, false, true, true};

Request request(Command command, uint64_t offset, uint32_t bytes, uint16_t flags = 0) {
  return {command, flags, 7, offset, bytes};
}
std::span<const std::byte> bytes_of(const RequestHead& head) {
  return std::as_bytes(std::span(&head, 1));
}

TEST(NbdRequest, LiesBigEndianOnTheWire) {
  RequestHead head;
  head.offset = 0x0102030405060708;
  const auto bytes = bytes_of(head);
  EXPECT_EQ(bytes[0], std::byte{0x25});
  EXPECT_EQ(bytes[3], std::byte{0x13});
  EXPECT_EQ(bytes[16], std::byte{1});
  EXPECT_EQ(bytes[23], std::byte{8});
  EXPECT_EQ(head.offset, 0x0102030405060708u);
}

TEST(NbdRequest, IsParsedWhole) {
  RequestHead head;
  head.flags = kFua;
  head.type = static_cast<uint16_t>(Command::write);
  head.cookie = 0xfeedface00000001;
  head.offset = 4096;
  head.bytes = kMaxPayload;
  const auto parsed = parse(bytes_of(head));
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->command, Command::write);
  EXPECT_TRUE(parsed->has(kFua));
  EXPECT_EQ(parsed->cookie, 0xfeedface00000001u);
  EXPECT_EQ(parsed->offset, 4096u);
  EXPECT_EQ(parsed->payload_bytes(), kMaxPayload);
}

TEST(NbdRequest, WhatCannotBeFollowedIsNone) {
  RequestHead head;
  head.type = static_cast<uint16_t>(Command::write);
  head.bytes = kMaxPayload + 1;
  EXPECT_FALSE(parse(bytes_of(head)));
  head.type = static_cast<uint16_t>(Command::trim);  // brings nothing
  EXPECT_TRUE(parse(bytes_of(head)));
  head.magic = kSimpleReplyMagic;
  EXPECT_FALSE(parse(bytes_of(head)));
}

TEST(NbdRequest, MustLieWithinTheDisk) {
  for (const Command command : {Command::read, Command::trim, Command::cache, Command::block_status}) {
    EXPECT_EQ(check(request(command, kDisk - 1, 1), kTerms), Error::none);
    EXPECT_EQ(check(request(command, kDisk - 1, 2), kTerms), Error::inval);
    EXPECT_EQ(check(request(command, UINT64_MAX, 2), kTerms), Error::inval);
  }
  for (const Command command : {Command::write, Command::write_zeroes}) {
    EXPECT_EQ(check(request(command, kDisk - 4096, 4096), kTerms), Error::none);
    EXPECT_EQ(check(request(command, kDisk, 1), kTerms), Error::nospc);
    EXPECT_EQ(check(request(command, UINT64_MAX - 1, 4096), kTerms), Error::nospc);
  }
}

TEST(NbdRequest, HasALengthExceptAFlush) {
  for (const Command command : {Command::read, Command::write, Command::trim, Command::cache,
                                Command::write_zeroes, Command::block_status})
    EXPECT_EQ(check(request(command, 0, 0), kTerms), Error::inval);
  EXPECT_EQ(check(request(Command::flush, 0, 0), kTerms), Error::none);
  EXPECT_EQ(check(request(Command::flush, 0, 1), kTerms), Error::inval);
  EXPECT_EQ(check(request(Command::flush, 1, 0), kTerms), Error::inval);
}

TEST(NbdRequest, ReadsAreAsLargeAsPayloads) {
  const Terms large{uint64_t{16} << 40, false, false, false};
  EXPECT_EQ(check(request(Command::read, 0, kMaxPayload), large), Error::none);
  EXPECT_EQ(check(request(Command::read, 0, kMaxPayload + 1), large), Error::inval);
  EXPECT_EQ(check(request(Command::trim, 0, UINT32_MAX), large), Error::none);
}

TEST(NbdRequest, HasOnlyFlagsThatItsCommandKnows) {
  EXPECT_EQ(check(request(Command::read, 0, 1, kDf), kTerms), Error::none);
  EXPECT_EQ(check(request(Command::read, 0, 1, kDf), Terms{kDisk}), Error::inval);  // no structured replies
  EXPECT_EQ(check(request(Command::write, 0, 1, kFua), kTerms), Error::none);
  EXPECT_EQ(check(request(Command::write, 0, 1, kNoHole), kTerms), Error::inval);
  EXPECT_EQ(check(request(Command::write_zeroes, 0, 1, kFua | kNoHole), kTerms), Error::none);
  EXPECT_EQ(check(request(Command::write_zeroes, 0, 1, 1 << 4), kTerms), Error::inval);  // FAST_ZERO
  EXPECT_EQ(check(request(Command::block_status, 0, 1, kReqOne), kTerms), Error::none);
  EXPECT_EQ(check(request(Command::trim, 0, 1, kReqOne), kTerms), Error::inval);
}

TEST(NbdRequest, UnknownOnesAreRefused) {
  EXPECT_EQ(check(request(static_cast<Command>(8), 0, 1), kTerms), Error::inval);
  EXPECT_EQ(check(request(static_cast<Command>(0xffff), 0, 1), kTerms), Error::inval);
}

TEST(NbdRequest, StatusNeedsItsContext) {
  EXPECT_EQ(check(request(Command::block_status, 0, 1), Terms{kDisk, false, true, false}), Error::inval);
}

TEST(NbdRequest, ReadOnlyDisksChangeNothing) {
  const Terms terms{kDisk, true, true, true};
  for (const Command command : {Command::write, Command::trim, Command::write_zeroes})
    EXPECT_EQ(check(request(command, 0, 1), terms), Error::perm);
  EXPECT_EQ(check(request(Command::read, 0, 1), terms), Error::none);
  EXPECT_EQ(check(request(Command::flush, 0, 0), terms), Error::none);
}

TEST(NbdRequest, ErrorsAreThoseOfTheProtocol) {
  EXPECT_EQ(error_of(0), Error::none);
  EXPECT_EQ(error_of(EIO), Error::io);
  EXPECT_EQ(error_of(ENOSPC), Error::nospc);
  EXPECT_EQ(error_of(EDQUOT), Error::nospc);
  EXPECT_EQ(error_of(EROFS), Error::perm);
  EXPECT_EQ(error_of(ENODEV), Error::io);
}

TEST(NbdReply, IsSimpleUntilStructuredOnesAreAgreedOn) {
  const Request read = request(Command::read, 512, 1024);
  EXPECT_EQ(ReplyHead::data(read, Terms{kDisk}).bytes().size(), sizeof(SimpleReply));
  const auto failed = ReplyHead::plain(read, Terms{kDisk}, Error::io);
  EXPECT_EQ(get<SimpleReply>(failed.bytes()).error, 5u);
  EXPECT_EQ(get<SimpleReply>(failed.bytes()).cookie, 7u);
}

TEST(NbdReply, WithContentIsOneChunk) {
  const Request read = request(Command::read, 512, 1024);
  const auto head = ReplyHead::data(read, kTerms);
  const auto chunk = get<ChunkHead>(head.bytes());
  EXPECT_EQ(chunk.flags, kChunkDone);
  EXPECT_EQ(chunk.type, static_cast<uint16_t>(Chunk::offset_data));
  EXPECT_EQ(chunk.bytes, 1024u + 8u);
  EXPECT_EQ(get<Big<uint64_t>>(head.bytes().subspan(sizeof chunk)), 512u);

  const auto extents = ReplyHead::extents(request(Command::block_status, 0, 1024), 3);
  EXPECT_EQ(get<ChunkHead>(extents.bytes()).bytes, 4u + 3u * 8u);
  EXPECT_EQ(get<Big<uint32_t>>(extents.bytes().subspan(sizeof chunk)), 1u);
}

TEST(NbdReply, FailureOfWhatHasContentIsAChunk) {
  const auto failed = ReplyHead::plain(request(Command::read, 0, 1), kTerms, Error::io);
  const auto chunk = get<ChunkHead>(failed.bytes());
  EXPECT_EQ(chunk.magic, kChunkMagic);
  EXPECT_EQ(chunk.type, static_cast<uint16_t>(Chunk::error));
  EXPECT_EQ(chunk.bytes, 6u);
  EXPECT_EQ(failed.bytes().size(), sizeof chunk + 6);
  // What has none may stay simple.
  EXPECT_EQ(ReplyHead::plain(request(Command::flush, 0, 0), kTerms, Error::io).bytes().size(),
            sizeof(SimpleReply));
}

}  // namespace
}  // namespace remusd::disk::nbd
