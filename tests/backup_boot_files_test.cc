// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "backup/boot_files.h"

namespace remusd::backup {
namespace {

TEST(BootFiles, ADefinitionThatNestsTooDeepIsRefused) {
  BootFiles files("/nonexistent");
  guest::Definition definition;
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');
  EXPECT_EQ(files.open(R"({"definition":{"name":)" + deep + "}}", &definition).code(), Code::corrupt);
  EXPECT_EQ(files.open(R"({"definition":{"name":"g"},"files":)" + deep + "}", &definition).code(),
            Code::corrupt);
}

TEST(BootFiles, AFileThatClaimsToBeEmptyIsNotReadHere) {
  // A file of the kernel's: its size is 0, and what it holds comes, or does not come, when it is read.
  const std::string pseudo = "/proc/version";
  const auto digest = digest_of_file(pseudo);
  ASSERT_TRUE(digest.ok());
  guest::Definition definition;
  definition.name = "g";
  definition.accelerator = "tcg";
  definition.kernel = pseudo;
  BootFiles files("/nonexistent");
  const Status status =
      files.open(R"({"definition":)" + guest::to_json(definition) +
                     R"(,"files":[{"role":"kernel","digest":")" + *digest + R"(","bytes":0}]})",
                 &definition);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(files.needs().files.size(), 1u);
  EXPECT_EQ(files.needs().files[0].digest, *digest);
}

}  // namespace
}  // namespace remusd::backup
