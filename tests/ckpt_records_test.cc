// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <random>

#include "ckpt/records.h"
#include "tests/ckpt_encoded.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;

/// decode() and, when it accepts, encode() again: a record that is accepted must be the one that was written.
template <typename Record>
Result<Bytes> recode(View body) {
  Record record;
  REMUSD_TRY(decode(body, &record));
  return encoded(record);
}

View view_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

Hello sample_hello() {
  Hello hello;
  hello.features = 0xf0;
  hello.features_required = 0x30;
  hello.session.fill(0xab);
  hello.generation = 12;
  hello.node = "a";
  hello.vm = "vm1";
  hello.software = "remusd 0.1.0";
  return hello;
}

struct Sample {
  std::string name;
  Bytes body;
  std::function<Result<Bytes>(View)> recode;
};

std::vector<Sample> samples() {
  static const std::string data = "file data";
  const NeedFiles need{{{"kernel", "00ff", 1000}, {"initrd", "11ee", 0}}};
  const FilePart file{"00ff", 1000, 10, view_of(data)};
  const BlobPart blob{100, 10, 9, PageEncoding::raw, view_of(data)};
  return {
      {"HELLO", encoded(sample_hello()), recode<Hello>},
      {"REFUSE", encoded(Refuse{Code::unsafe, "line one\nline two"}), recode<Refuse>},
      {"NEED_FILES", encoded(need), recode<NeedFiles>},
      {"FILE", encoded(file), recode<FilePart>},
      {"READY", encoded(Ready{1 << 20, 256 << 20}), recode<Ready>},
      {"BLOB", encoded(blob), recode<BlobPart>},
      {"COMMIT", encoded(Commit{1, 2, 3, 4, 5}), recode<Commit>},
      {"ACK", encoded(Ack{6, 7}), recode<Ack>},
      {"HEARTBEAT", encoded(Heartbeat{8, 9}), recode<Heartbeat>},
      {"PROGRESS", encoded(Progress{10}), recode<Progress>},
      {"ORDER", encoded(Order{}), recode<Order>},
      {"ORDER", encoded(Order{OrderKind::switchover}), recode<Order>},
      {"INPUT", encoded(Input{1, view_of("frame")}), recode<Input>},
      {"SETTLED", encoded(Settled{11}), recode<Settled>},
  };
}

TEST(RecordsTest, EveryRecordComesBackAsItWasWritten) {
  for (const Sample& sample : samples()) {
    const Result<Bytes> again = sample.recode(sample.body);
    ASSERT_TRUE(again.ok()) << sample.name << ": " << again.status().message();
    EXPECT_EQ(again.value(), sample.body) << sample.name;
  }
}

TEST(RecordsTest, EveryRecordIsRefusedWhenCutAtAnyLength) {
  for (const Sample& sample : samples()) {
    for (size_t length = 0; length < sample.body.size(); ++length) {
      const Result<Bytes> again = sample.recode(View(sample.body).first(length));
      ASSERT_FALSE(again.ok()) << sample.name << " at " << length;
      EXPECT_EQ(again.status().code(), Code::corrupt);
    }
  }
}

TEST(RecordsTest, EveryRecordIsRefusedWithTrailingBytes) {
  for (Sample& sample : samples()) {
    sample.body.push_back(std::byte{0});
    EXPECT_FALSE(sample.recode(sample.body).ok()) << sample.name;
  }
}

TEST(RecordsTest, AFlippedBitIsRefusedOrChangesTheValueButNeverHides) {
  for (const Sample& sample : samples()) {
    for (size_t bit = 0; bit < sample.body.size() * 8; ++bit) {
      Bytes flipped = sample.body;
      flipped[bit / 8] ^= std::byte{1} << (bit % 8);
      const Result<Bytes> again = sample.recode(flipped);
      if (again.ok()) {
        EXPECT_EQ(again.value(), flipped) << sample.name << " bit " << bit;
      }
    }
  }
}

TEST(RecordsTest, RandomBytesNeverCrashADecoder) {
  std::mt19937_64 random(7);
  std::vector<Sample> all = samples();
  for (int round = 0; round < 100'000; ++round) {
    Sample& sample = all[round % all.size()];
    Bytes body;
    if (round % 3 == 0) {
      body.resize(random() % 128);
      for (std::byte& byte : body) byte = static_cast<std::byte>(random());
    } else {
      body = sample.body;
      for (int i = 0; i < 3; ++i) body[random() % body.size()] = static_cast<std::byte>(random());
    }
    const Result<Bytes> again = sample.recode(body);
    if (again.ok()) {
      ASSERT_EQ(again.value(), body) << sample.name;
    }
  }
}

TEST(RecordsTest, HelloKeepsItsFields) {
  Hello read;
  ASSERT_TRUE(decode(encoded(sample_hello()), &read).ok());
  EXPECT_EQ(read.session, sample_hello().session);
  EXPECT_EQ(read.generation, 12u);
  EXPECT_EQ(read.vm, "vm1");
  EXPECT_EQ(read.features_required, 0x30u);
}

TEST(RecordsTest, SettledNamesAnEpoch) {
  Settled read;
  EXPECT_TRUE(decode(encoded(Settled{7}), &read).ok());
  EXPECT_EQ(read.epoch, 7u);
  EXPECT_EQ(decode(encoded(Settled{0}), &read).code(), Code::corrupt);
}

TEST(RecordsTest, WrongValuesAreRefusedByName) {
  Hello hello = sample_hello();
  hello.version_min = 3;
  hello.version_max = 2;
  Hello read;
  EXPECT_THAT(decode(encoded(hello), &read).message(), HasSubstr("HELLO record: version_min"));
  hello = sample_hello();
  hello.features_required = 1;
  EXPECT_THAT(decode(encoded(hello), &read).message(), HasSubstr("features_required"));

  Ready ready{0, 4095};
  EXPECT_THAT(decode(encoded(ready), &ready).message(), HasSubstr("memory_bytes"));

  FilePart file{"d", 10, 8, view_of("abc")};
  FilePart read_file;
  EXPECT_THAT(decode(encoded(file), &read_file).message(), HasSubstr("reaches past"));
  file.offset = ~0ull;
  EXPECT_FALSE(decode(encoded(file), &read_file).ok()) << "a negative offset";
  file = {"d", kMaxFileBytes + 1, 0, view_of("abc")};
  EXPECT_THAT(decode(encoded(file), &read_file).message(), HasSubstr("total_bytes"));
  file = {"", 10, 0, view_of("abc")};
  EXPECT_THAT(decode(encoded(file), &read_file).message(), HasSubstr("digest"));

  BlobPart blob{10, ~0ull - 1, 3, PageEncoding::raw, view_of("abc")};
  BlobPart read_blob;
  EXPECT_FALSE(decode(encoded(blob), &read_blob).ok());
  blob = {kMaxBlobBytes + 1, 0, 3, PageEncoding::raw, view_of("abc")};
  EXPECT_THAT(decode(encoded(blob), &read_blob).message(), HasSubstr("total_bytes"));
  blob = {kMaxBlobBytes, 0, kMaxBlobPartBytes + 1, PageEncoding::lz4, view_of("abc")};
  EXPECT_THAT(decode(encoded(blob), &read_blob).message(), HasSubstr("raw_bytes"));
  blob = {10, 0, 3, PageEncoding::zero, view_of("abc")};
  EXPECT_THAT(decode(encoded(blob), &read_blob).message(), HasSubstr("encoding"));

  Bytes order = encoded(Order{});
  order[0] = std::byte{9};
  Order read_order;
  EXPECT_THAT(decode(order, &read_order).message(), HasSubstr("kind"));
  Input read_input;
  EXPECT_THAT(decode(encoded(Input{0, {}}), &read_input).message(), HasSubstr("frame_bytes"));
  EXPECT_THAT(decode(encoded(Input{0, Bytes(kMaxInputBytes + 1)}), &read_input).message(),
              HasSubstr("frame"));
  Bytes refuse = encoded(Refuse{Code::io, "x"});
  refuse[0] = std::byte{12};
  Refuse read_refuse;
  EXPECT_THAT(decode(refuse, &read_refuse).message(), HasSubstr("code"));
}

TEST(RecordsTest, ALargeCountAllocatesNothing) {
  Bytes body(4, std::byte{0xff});
  NeedFiles need;
  EXPECT_FALSE(decode(body, &need).ok());
  EXPECT_LE(need.files.capacity(), 1u);
}

TEST(RecordsTest, StringsAreCutAndCleanedByTheEncoder) {
  Refuse refuse{Code::invalid, std::string(kMaxStringBytes - 1, 'a') + "\xc3\xa4"};
  Refuse read;
  ASSERT_TRUE(decode(encoded(refuse), &read).ok());
  EXPECT_EQ(read.reason, std::string(kMaxStringBytes - 1, 'a')) << "no half of a UTF-8 character";
  Hello hello = sample_hello();
  hello.node = "a\x1b[31m\n";
  Hello read_hello;
  ASSERT_TRUE(decode(encoded(hello), &read_hello).ok());
  EXPECT_EQ(read_hello.node, "a?[31m?");
}

TEST(RecordsTest, ControlCharactersFromAPeerAreRefused) {
  Bytes body = encoded(sample_hello());
  const Bytes name = encoded(Refuse{Code::ok, "vm1"});  // only to find the bytes
  auto at = std::search(body.begin(), body.end(), name.end() - 3, name.end());
  ASSERT_NE(at, body.end());
  *at = std::byte{0x1b};
  Hello hello;
  EXPECT_THAT(decode(body, &hello).message(), HasSubstr("control"));
}

TEST(RecordsTest, TextIsBounded) {
  std::string_view text;
  EXPECT_TRUE(decode_text(view_of("{}"), &text).ok());
  EXPECT_EQ(text, "{}");
  EXPECT_FALSE(decode_text({}, &text).ok());
  EXPECT_FALSE(decode_text(Bytes(kMaxTextBytes + 1), &text).ok());
}

TEST(NegotiateTest, TheHighestCommonVersionIsSpoken) {
  Hello ours = sample_hello(), theirs = sample_hello();
  EXPECT_EQ(negotiate(ours, theirs).value(), 1);
  ours.version_max = 4;
  theirs.version_min = 2;
  theirs.version_max = 3;
  EXPECT_EQ(negotiate(ours, theirs).value(), 3);
}

TEST(NegotiateTest, NoCommonVersionIsRefusedWithBothRanges) {
  Hello theirs = sample_hello();
  theirs.node = "b";
  theirs.version_min = 2;
  theirs.version_max = 3;
  const Result<uint16_t> result = negotiate(sample_hello(), theirs);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), Code::unsupported);
  EXPECT_THAT(result.status().message(), HasSubstr("speaks versions 2 to 3, this side 1 to 1"));
}

TEST(NegotiateTest, ARequiredFeatureThatOneSideLacksIsRefused) {
  Hello ours = sample_hello(), theirs = sample_hello();
  theirs.features |= 0x100;
  EXPECT_TRUE(negotiate(ours, theirs).ok());
  theirs.features_required |= 0x100;
  EXPECT_THAT(negotiate(ours, theirs).status().message(), HasSubstr("0x100"));
  EXPECT_THAT(negotiate(theirs, ours).status().message(), HasSubstr("lacks the required features 0x100"));
}

class BlobTest : public ::testing::Test {
 protected:
  static Bytes make_blob(size_t size, bool compressible) {
    std::mt19937_64 random(size);
    Bytes blob(size);
    for (size_t i = 0; i < size; ++i)
      blob[i] = static_cast<std::byte>(compressible ? (i / 100) & 0xff : random() & 0xff);
    return blob;
  }
  static std::vector<Bytes> cut(const Bytes& blob) {
    std::vector<Bytes> bodies;
    uint64_t offset = 0;
    do {
      EXPECT_TRUE(append_blob_part(blob, offset, &bodies.emplace_back(), &offset).ok());
    } while (offset < blob.size());
    return bodies;
  }
  static BlobPart part_of(const Bytes& body) {
    BlobPart part;
    EXPECT_TRUE(decode(body, &part).ok());
    return part;
  }
};

TEST_F(BlobTest, BlobsOfAnySizeComeBack) {
  BlobAssembler assembler;
  for (const bool compressible : {true, false}) {
    for (const size_t size : {0ul, 1ul, 2ul, 59'000ul, 1ul << 20, (1ul << 20) + 1, 3'500'000ul}) {
      const Bytes blob = make_blob(size, compressible);
      const std::vector<Bytes> bodies = cut(blob);
      EXPECT_EQ(bodies.size(), std::max<size_t>(1, (size + kMaxBlobPartBytes - 1) / kMaxBlobPartBytes));
      for (size_t i = 0; i < bodies.size(); ++i) {
        EXPECT_FALSE(assembler.complete());
        ASSERT_LE(bodies[i].size(), kMaxBodyBytes);
        ASSERT_TRUE(assembler.add(part_of(bodies[i])).ok());
      }
      ASSERT_TRUE(assembler.complete());
      EXPECT_EQ(assembler.take(), blob);
    }
  }
}

TEST_F(BlobTest, CompressibleBlobsShrink) {
  EXPECT_LT(cut(make_blob(59'000, true))[0].size(), 10'000u);
}

TEST_F(BlobTest, PartsOutOfOrderRepeatedOrOfAnotherBlobAreRefused) {
  const std::vector<Bytes> bodies = cut(make_blob(2'500'000, true));
  {
    BlobAssembler assembler;
    EXPECT_FALSE(assembler.add(part_of(bodies[1])).ok()) << "does not begin at 0";
  }
  {
    BlobAssembler assembler;
    ASSERT_TRUE(assembler.add(part_of(bodies[0])).ok());
    EXPECT_FALSE(assembler.add(part_of(bodies[2])).ok()) << "gap";
  }
  {
    BlobAssembler assembler;
    ASSERT_TRUE(assembler.add(part_of(bodies[0])).ok());
    EXPECT_FALSE(assembler.add(part_of(bodies[0])).ok()) << "repeated";
  }
  {
    BlobAssembler assembler;
    ASSERT_TRUE(assembler.add(part_of(bodies[0])).ok());
    BlobPart other = part_of(bodies[1]);
    other.total_bytes += 1;
    EXPECT_FALSE(assembler.add(other).ok()) << "another total";
  }
  {
    BlobAssembler assembler;
    for (const Bytes& body : bodies) ASSERT_TRUE(assembler.add(part_of(body)).ok());
    EXPECT_FALSE(assembler.add(part_of(bodies[0])).ok()) << "after the last";
    assembler.reset();
    EXPECT_TRUE(assembler.add(part_of(bodies[0])).ok()) << "a new blob after reset";
  }
}

// Fault 10: a total is a claim; memory is taken as parts arrive.
TEST_F(BlobTest, AClaimedTotalAllocatesNothing) {
  BlobAssembler assembler;
  ASSERT_TRUE(assembler.add({kMaxBlobBytes, 0, 3, PageEncoding::raw, view_of("abc")}).ok());
  EXPECT_LT(assembler.blob().capacity(), 4096u);
  EXPECT_FALSE(assembler.complete());
}

TEST_F(BlobTest, ABombIsRefused) {
  // Valid lz4 that decodes to more, or less, than the part says.
  const Bytes blob = make_blob(50'000, true);
  Bytes body;
  uint64_t next = 0;
  ASSERT_TRUE(append_blob_part(blob, 0, &body, &next).ok());
  for (const uint32_t raw_bytes : {49'999u, 50'001u, kMaxBlobPartBytes}) {
    BlobPart part = part_of(body);
    part.raw_bytes = raw_bytes;
    part.total_bytes = kMaxBlobPartBytes;
    BlobAssembler assembler;
    EXPECT_EQ(assembler.add(part).code(), Code::corrupt) << raw_bytes;
  }
}

TEST_F(BlobTest, WhatCannotBeCutIsRefused) {
  Bytes body;
  uint64_t next = 0;
  EXPECT_EQ(append_blob_part(Bytes(10), 10, &body, &next).code(), Code::invalid);
  EXPECT_EQ(append_blob_part(Bytes(10), 11, &body, &next).code(), Code::invalid);
  EXPECT_EQ(append_blob_part(Bytes(kMaxBlobBytes + 1), 0, &body, &next).code(), Code::invalid);
}

}  // namespace
}  // namespace remusd::ckpt
