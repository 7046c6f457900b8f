// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The small pure parts: durations, quantiles, exit codes.
#include <gtest/gtest.h>

#include "control/duration.h"
#include "control/epoch_window.h"
#include "control/exit_code.h"
#include "control/pace.h"
#include "control/toml_reader.h"

namespace remusd::control {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Duration, ANumberWithAUnitIsTaken) {
  EXPECT_EQ(*parse_duration("25ms"), milliseconds(25));
  EXPECT_EQ(*parse_duration("2s"), seconds(2));
  EXPECT_EQ(*parse_duration("1.5s"), milliseconds(1500));
  EXPECT_EQ(*parse_duration("500us"), microseconds(500));
  EXPECT_EQ(*parse_duration("3m"), seconds(180));
}

TEST(Duration, AnythingElseIsRefused) {
  for (const char* text : {"", "25", "ms", "-2s", "2 s", "2h", "1e300s", "nans", "infs", "2sx"}) {
    EXPECT_FALSE(parse_duration(text).ok()) << text;
  }
}

TEST(Duration, WhatADurationCannotHoldIsRefused) {
  for (const char* text : {"1e9m", "1e10s", "1e300s", "17000000m"})
    EXPECT_FALSE(parse_duration(text).ok()) << text;
  EXPECT_EQ(*parse_duration("1e9s"), seconds(1'000'000'000));
  EXPECT_TRUE(parse_duration("1e10us").ok());
  EXPECT_EQ(format_duration(*parse_duration("1e9s")), "16666666 min 40 s");
  EXPECT_EQ(format_duration(std::chrono::hours(2'500'000)), "150000000 min 0 s")
      << "more seconds than an int";
}

TEST(Quantile, IsTheNearestRank) {
  std::vector<double> none, values;
  EXPECT_EQ(quantile(&none, 0.5), 0);
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(quantile(&values, 0.5), 50);
  EXPECT_EQ(quantile(&values, 0.99), 99);
  EXPECT_EQ(quantile(&values, 1), 100);
  EXPECT_EQ(quantile(&values, 0), 1);
}

TEST(EpochWindow, KeepsTheLastEpochsAndNoMore) {
  EpochWindow window;
  EpochSample sample;
  for (size_t i = 0; i < EpochWindow::kCapacity + 10; ++i) {
    sample.dirty_pages = i;
    window.add(sample);
  }
  EXPECT_EQ(window.size(), EpochWindow::kCapacity);
  std::vector<double> pages = window.dirty_pages();
  EXPECT_EQ(quantile(&pages, 0), 10);
  EXPECT_EQ(quantile(&pages, 1), static_cast<double>(EpochWindow::kCapacity + 9));
}

TEST(Pace, IsTheConfigurationsUnlessTheCommandSaysOtherwise) {
  Config config;
  config.epoch_ms = 20;
  config.max_slowdown_percent = 10;
  auto pace = make_pace(config, nlohmann::json::object());
  ASSERT_TRUE(pace.ok());
  EXPECT_EQ(pace->interval, milliseconds(20));
  EXPECT_EQ(pace->latency_target, milliseconds(0));
  EXPECT_DOUBLE_EQ(pace->max_slowdown, 0.1);
  pace = make_pace(config,
                   {{"epoch_ms", 5}, {"latency_target_ms", 3.5}, {"epoch_min_ms", 1}, {"max_slowdown", 0}});
  ASSERT_TRUE(pace.ok());
  EXPECT_EQ(pace->interval, milliseconds(5));
  EXPECT_EQ(pace->latency_target, microseconds(3500));
  EXPECT_EQ(pace->epoch_min, milliseconds(1));
  EXPECT_EQ(pace->max_slowdown, 0);
}

TEST(Pace, RefusesWhatIsOutOfRange) {
  for (const char* arguments :
       {R"({"epoch_ms":1})", R"({"epoch_ms":1001})", R"({"epoch_ms":"5ms"})", R"({"latency_target_ms":-1})",
        R"({"epoch_min_ms":0.1})", R"({"max_slowdown":1})", R"({"max_slowdown":null})"}) {
    const auto pace = make_pace(Config(), nlohmann::json::parse(arguments));
    ASSERT_FALSE(pace.ok()) << arguments;
    EXPECT_EQ(pace.status().code(), Code::invalid);
  }
}

TEST(ExitCode, EachKindOfFailureHasItsOwn) {
  EXPECT_EQ(exit_code(api_code(Reply())), kDone);
  EXPECT_EQ(exit_code(Status(Code::io, "")), kFailed);
  EXPECT_EQ(exit_code(Status(Code::invalid, "")), kUsage);
  EXPECT_EQ(exit_code(api_code(Reply::not_protected(""))), kUnprotected);
  EXPECT_EQ(exit_code(Status(Code::not_found, "")), kNoSuchGuest);
  EXPECT_EQ(exit_code(Status(Code::timed_out, "")), kTimedOut);
  EXPECT_EQ(exit_code(Status(Code::unsafe, "")), kUnsafe);
}

TEST(Address, NeedsAHostAndAPort) {
  for (const char* good : {"10.0.0.1:7270", "host:1", "[::1]:65535"}) EXPECT_TRUE(is_address(good)) << good;
  for (const char* bad : {"", "host", ":1", "host:", "host:0", "host:65536", "::1:80", "host:x"}) {
    EXPECT_FALSE(is_address(bad)) << bad;
  }
}

}  // namespace
}  // namespace remusd::control
