// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "guest/definition.h"
#include "guest/facts.h"
#include "guest/json_fields.h"

namespace remusd::guest {
namespace {

std::string nested(size_t levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

TEST(ParseJson, NestingIsBounded) {
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth)).is_array());
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth + 1)).is_discarded());
  // As much of it as a record may hold: copying or printing this would take more stack than there is.
  EXPECT_TRUE(parse_json(nested(size_t{1} << 19)).is_discarded());
  EXPECT_TRUE(parse_json(std::string(size_t{1} << 20, '{')).is_discarded());
}

TEST(ParseJson, WhatStandsSideBySideOrInTextsIsNotNested) {
  std::string wide = "[";
  for (size_t i = 0; i < 2 * kMaxJsonDepth; ++i) wide += "[],{},";
  EXPECT_TRUE(parse_json(wide + "0]").is_array());
  const std::string brackets(2 * kMaxJsonDepth, '[');
  EXPECT_TRUE(parse_json("[\"" + brackets + "\"]").is_array());
  EXPECT_TRUE(parse_json("[\"\\\"" + brackets + "\\\\\"]").is_array());
  EXPECT_TRUE(parse_json("[\"\\\\\"," + brackets).is_discarded());
}

TEST(ParseJson, ObjectsThatNestTooDeepAreRefusedWithThatReason) {
  const std::string deep = R"({"name":"g","devices":)" + nested(size_t{1} << 17) + "}";
  for (const Status& status : {definition_from_json(deep).status(), facts_from_json(deep).status()}) {
    EXPECT_NE(status.message().find("nests deeper than"), std::string::npos) << status.message();
  }
}

}  // namespace
}  // namespace remusd::guest
