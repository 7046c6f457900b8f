// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "ckpt/blob_delta.h"
#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using Random = std::mt19937_64;

Bytes random_blob(Random& random, size_t size) {
  Bytes blob(size);
  for (std::byte& byte : blob) byte = static_cast<std::byte>(random());
  return blob;
}

std::vector<Bytes> cut(BlobHistory* history, const Bytes& blob) {
  std::vector<Bytes> bodies;
  uint64_t offset = 0;
  do {
    EXPECT_TRUE(history->append_part(blob, offset, &bodies.emplace_back(), &offset).ok());
  } while (offset < blob.size());
  return bodies;
}

BlobPart part_of(const Bytes& body) {
  BlobPart part;
  const Status status = decode(body, &part);
  EXPECT_TRUE(status.ok()) << status.message();
  return part;
}

Bytes assembled(const std::vector<Bytes>& bodies, View base) {
  BlobAssembler assembler;
  for (const Bytes& body : bodies) {
    const Status status = assembler.add(part_of(body), base);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  return assembler.take();
}

size_t total(const std::vector<Bytes>& bodies) {
  size_t bytes = 0;
  for (const Bytes& body : bodies) bytes += body.size();
  return bytes;
}

TEST(BlobDeltaTest, AnUnchangedStateCostsAFewBytes) {
  Random random(1);
  BlobHistory history;
  const Bytes blob = random_blob(random, 59'000);
  EXPECT_GT(total(cut(&history, blob)), 59'000u) << "the first goes whole";
  const std::vector<Bytes> again = cut(&history, blob);
  EXPECT_EQ(total(again), 24u + 15 * 2);
  EXPECT_EQ(part_of(again[0]).encoding, PageEncoding::delta);
  EXPECT_EQ(assembled(again, blob), blob);
}

TEST(BlobDeltaTest, StatesOfAnyLengthComeBackHoweverTheyChange) {
  Random random(2);
  BlobHistory history;
  Bytes before;
  int deltas = 0, packed = 0, whole = 0;
  Bytes blob;
  for (int round = 0; round < 300; ++round) {
    const auto kind = random() % 6;
    if (kind == 0 || blob.empty()) {
      constexpr size_t kSizes[] = {1, 2, 7, 4095, 4096, 4097, 59'000, (1u << 20) + 5, 2'500'000};
      blob = random_blob(random, kSizes[random() % std::size(kSizes)]);
    } else if (kind == 1) {
      blob.clear();
    } else if (kind == 2) {
      blob = random_blob(random, blob.size());  // as long, and all of it new
    } else {
      for (uint64_t changes = random() % (kind == 3 ? 4 : 400); changes > 0; --changes)
        blob[random() % blob.size()] = static_cast<std::byte>(random());
      blob.back() ^= std::byte{1};
    }
    const std::vector<Bytes> bodies = cut(&history, blob);
    for (const Bytes& body : bodies) {
      const PageEncoding encoding = part_of(body).encoding;
      deltas += encoding == PageEncoding::delta;
      packed += encoding == PageEncoding::delta_lz4;
      whole += encoding == PageEncoding::raw || encoding == PageEncoding::lz4;
    }
    ASSERT_EQ(assembled(bodies, before), blob) << round;
    before = blob;
  }
  EXPECT_GT(deltas, 20);
  EXPECT_GT(packed, 20);
  EXPECT_GT(whole, 20);
}

TEST(BlobDeltaTest, ADeltaWithoutItsBaseIsRefused) {
  Random random(3);
  BlobHistory history;
  Bytes blob = random_blob(random, 9000);
  (void)cut(&history, blob);
  const Bytes body = cut(&history, blob)[0];
  EXPECT_THAT(BlobAssembler().add(part_of(body)).message(), HasSubstr("where none is due"));
  EXPECT_THAT(BlobAssembler().add(part_of(body), View(blob).first(8999)).message(),
              HasSubstr("a state of 8999 bytes"));
}

/// A delta part over two blocks, the second of 904 bytes, from the blocks' sizes and payloads.
BlobPart two_blocks(const Bytes& data) {
  BlobPart part;
  part.total_bytes = 5000;
  part.raw_bytes = 5000;
  part.encoding = PageEncoding::delta;
  part.data = data;
  return part;
}

Bytes one_word(size_t line, unsigned mask, uint64_t word) {
  Bytes delta;
  put(uint64_t{1} << line, &delta);
  put(static_cast<uint8_t>(mask), &delta);
  put(word, &delta);
  return delta;
}

TEST(BlobDeltaTest, MalformedPartsAreRefused) {
  const Bytes base(5000, std::byte{7});
  const auto refused = [&](const Bytes& data) {
    BlobAssembler assembler;
    return assembler.add(two_blocks(data), base).message();
  };
  const auto blocks = [](const Bytes& second) {
    Bytes data;
    put(uint16_t{0}, &data);
    put(static_cast<uint16_t>(second.size()), &data);
    put_bytes(second, &data);
    return data;
  };
  EXPECT_EQ(refused(blocks(one_word(0, 1, 5))), "");
  EXPECT_EQ(refused(blocks(one_word(14, 1, 5))), "") << "the last word, at 4096 + 896";
  EXPECT_THAT(refused(blocks(one_word(14, 2, 5))), HasSubstr("past its blob"));
  EXPECT_THAT(refused(blocks(one_word(63, 1, 5))), HasSubstr("past its blob"));
  EXPECT_THAT(refused(blocks(one_word(0, 0, 5))), HasSubstr("one delta"));
  EXPECT_THAT(refused(blocks(one_word(0, 3, 5))), HasSubstr("one delta"));
  EXPECT_THAT(refused(Bytes(2)), HasSubstr("missing"));
  EXPECT_THAT(refused(Bytes(3)), HasSubstr("missing"));
  EXPECT_THAT(refused(Bytes(6)), HasSubstr("bytes follow"));
  Bytes longer = blocks(one_word(0, 1, 5));
  longer.pop_back();
  EXPECT_THAT(refused(longer), HasSubstr("one delta")) << "cut off";
}

TEST(BlobDeltaTest, DamagedPartsNeverCrash) {
  Random random(4);
  BlobHistory history;
  Bytes blob = random_blob(random, 59'001);
  (void)cut(&history, blob);
  const Bytes base = blob;
  for (int i = 0; i < 300; ++i) blob[random() % blob.size()] ^= std::byte{1};
  const Bytes good = cut(&history, blob)[0];
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    Bytes body = good;
    for (uint64_t changes = 1 + random() % 3; changes > 0; --changes)
      body[random() % body.size()] = static_cast<std::byte>(random());
    BlobPart part;
    if (!decode(body, &part).ok()) continue;
    BlobAssembler assembler;
    accepted += assembler.add(part, base).ok();
  }
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace remusd::ckpt
