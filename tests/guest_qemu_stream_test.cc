// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "guest/qemu/stream.h"
#include "tests/guest_qemu_stream_writer.h"

namespace remusd::guest::qemu {
namespace {

using Bytes = std::vector<std::byte>;
using Writer = StreamWriter;
using ::testing::HasSubstr;

/// Start, a part with one page, an end whose page continues the block named in the part.
Writer good_head() {
  Writer w;
  w.header().ram_start();
  w.section(2).page(0, "pc.bios").be64(0x10).footer();
  w.section(3).zero(0x1000).be64(0x10).footer();
  return w;
}

Bytes good_stream() {
  return good_head().u8(4).be32(7).name("timer").be32(0).be32(2).text("data").u8(0x7e).be32(7).u8(0).bytes();
}
Bytes good_device() {
  return Writer()
      .header()
      .u8(4)
      .be32(7)
      .name("timer")
      .be32(0)
      .be32(2)
      .text("live")
      .u8(0x7e)
      .be32(7)
      .u8(0)
      .bytes();
}

TEST(QemuStream, TheBaseIsTheHeadWithTheRamSections) {
  const auto base = extract_base(good_stream(), "ram0");
  ASSERT_TRUE(base.ok()) << base.status().message();
  EXPECT_EQ(*base, good_head().bytes());
  const auto contents = inspect(*base);
  ASSERT_TRUE(contents.ok());
  ASSERT_EQ(contents->blocks.size(), 2u);
  EXPECT_EQ(contents->blocks[1].name, "pc.bios");
  EXPECT_EQ(contents->blocks[1].pages, 2u);
  EXPECT_EQ(contents->blocks[0].pages, 0u);
}

TEST(QemuStream, AConfigurationSectionIsLeftOut) {
  const Bytes good = good_stream();
  Bytes with = Writer()
                   .header()
                   .u8(7)
                   .be32(4)
                   .text("pc-x")
                   .u8(5)
                   .name("configuration/capabilities")
                   .be32(1)
                   .be32(1)
                   .name("x-ignore-shared")
                   .u8(5)
                   .name("configuration/target-page-bits")
                   .be32(1)
                   .be32(12)
                   .bytes();
  with.insert(with.end(), good.begin() + 8, good.end());
  const auto base = extract_base(with, "ram0");
  ASSERT_TRUE(base.ok()) << base.status().message();
  EXPECT_EQ(*base, good_head().bytes());
}

TEST(QemuStream, ComposedStreamIsBaseThenDeviceSections) {
  const Bytes base = good_head().bytes(), device = good_device();
  const auto stream = compose(base, device);
  ASSERT_TRUE(stream.ok()) << stream.status().message();
  Bytes expected = base;
  expected.insert(expected.end(), device.begin() + 8, device.end());
  EXPECT_EQ(*stream, expected);
}

TEST(QemuStream, WhatCannotBeTrustedIsRefusedByName) {
  const auto code = [](const Bytes& bytes) { return inspect(bytes).status(); };
  EXPECT_THAT(code(Writer().be32(1).be32(3).bytes()).message(), HasSubstr("no QEVM"));
  EXPECT_EQ(code(Writer().header().ram_start("slirp").bytes()).code(), Code::unsupported);
  EXPECT_THAT(code(Writer().header().ram_start("ram", 5).bytes()).message(), HasSubstr("version 5"));
  EXPECT_THAT(code(Writer().header().ram_start().section(2).page(0, "vga").bytes()).message(),
              HasSubstr("no known RAM block"));
  EXPECT_THAT(code(Writer().header().ram_start().section(2).page(0x2000, "pc.bios").bytes()).message(),
              HasSubstr("beyond its RAM block"));
  EXPECT_THAT(code(Writer().header().ram_start().section(2).zero(0).bytes()).message(),
              HasSubstr("no known RAM block"));
  EXPECT_THAT(code(Writer().header().ram_start().section(2).be64(0x100).bytes()).message(),
              HasSubstr("flags 256"));
  EXPECT_THAT(code(Writer().header().ram_start().u8(9).bytes()).message(), HasSubstr("section type 9"));
  EXPECT_THAT(code(Writer().header().ram_start().bytes()).message(), HasSubstr("ends in the middle"));
}

TEST(QemuStream, ContentsOfTheSharedRamAreRefused) {
  const Bytes bytes = Writer().header().ram_start().section(3).page(0, "ram0").be64(0x10).footer().bytes();
  EXPECT_EQ(extract_base(bytes, "ram0").status().code(), Code::unsafe);
  EXPECT_EQ(extract_base(bytes, "other").status().code(), Code::corrupt);
}

TEST(QemuStream, ADeviceStateWithoutHeaderOrEndIsRefused) {
  const Bytes base = good_head().bytes();
  Bytes device = good_device();
  device.pop_back();
  device.back() = std::byte{1};
  EXPECT_EQ(compose(base, device).status().code(), Code::corrupt);
  EXPECT_EQ(compose(base, {}).status().code(), Code::corrupt);
  EXPECT_EQ(compose(base, Writer().be64(1).be64(0).bytes()).status().code(), Code::corrupt);
  EXPECT_EQ(compose(base, Writer().header().be64(0).bytes()).status().code(), Code::corrupt);
  EXPECT_EQ(compose(good_stream(), good_device()).status().code(), Code::corrupt);
}

TEST(QemuStream, EveryTruncationIsRefused) {
  const Bytes head = good_head().bytes();
  for (size_t size = 0; size < head.size(); ++size) {
    EXPECT_FALSE(inspect(std::span(head).first(size)).ok()) << size;
  }
}

TEST(QemuStream, MutationsNeverPassWithMoreThanTheyHold) {
  const Bytes head = good_head().bytes();
  for (uint32_t seed = 1; seed <= 20000; ++seed) {
    std::mt19937 random(seed);
    Bytes bytes = head;
    for (uint32_t i = random() % 4 + 1; i > 0; --i) {
      // Where the structure is, not in the page's filling.
      const size_t at = random() % 2 == 0 ? random() % 160 : bytes.size() - 1 - random() % 60;
      bytes[at] = static_cast<std::byte>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    const auto contents = inspect(bytes);
    if (!contents.ok()) {
      EXPECT_FALSE(contents.status().message().empty()) << "seed " << seed;
      continue;
    }
    EXPECT_LE(contents->head_bytes, bytes.size()) << "seed " << seed;
    EXPECT_LE(contents->blocks.size(), kMaxRamBlocks) << "seed " << seed;
  }
}

}  // namespace
}  // namespace remusd::guest::qemu
