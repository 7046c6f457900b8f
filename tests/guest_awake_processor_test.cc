// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "guest/awake_processor.h"
#include "tests/temporary_directory.h"

namespace remusd::guest {
namespace {

/// Processors 0 and 1 with their settings in files. A write changes as many bytes as it has, so the settings
/// have as many as "n/a".
class AwakeProcessorTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* processor : {"/cpu0", "/cpu1"}) {
      std::filesystem::create_directories(directory_.path() + processor + "/power");
    }
    set(0, "100");
    set(1, "200");
  }
  std::string setting_path(int processor) const {
    return directory_.path() + "/cpu" + std::to_string(processor) + "/power/pm_qos_resume_latency_us";
  }
  void set(int processor, const std::string& value) const {
    std::ofstream(setting_path(processor)) << value << '\n';
  }
  std::string setting(int processor) const { return line_of(setting_path(processor)); }
  std::string line_of(const std::string& path) const {
    std::string line;
    std::getline(std::ifstream(path), line);
    return line;
  }
  std::string record() const { return directory_.path() + "/vm1.awake"; }
  AwakeProcessor make() const { return AwakeProcessor(record(), directory_.path()); }

  const TemporaryDirectory directory_;
};

TEST_F(AwakeProcessorTest, OneIsKeptAwakeWhileItIsHeld) {
  {
    AwakeProcessor awake = make();
    awake.hold();  // None was chosen.
    for (const int processor : {0, 1, 0}) {
      const std::string before = setting(processor);
      awake.choose(processor);
      EXPECT_EQ(line_of(record()), std::to_string(processor) + " " + before);
      for (int i = 0; i < 3; ++i) {
        awake.hold();
        EXPECT_EQ(setting(processor), "n/a");
        awake.release();
        EXPECT_EQ(setting(processor), before);
      }
      awake.release();
      EXPECT_EQ(setting(processor), before);
    }
    awake.hold();
    awake.choose(1);
    EXPECT_EQ(setting(0), "100") << "it is not held any more";
    awake.hold();
    const AwakeProcessor moved = std::move(awake);
    EXPECT_EQ(setting(1), "n/a") << "whoever has it now holds it";
  }
  EXPECT_EQ(setting(1), "200");
  EXPECT_FALSE(std::filesystem::exists(record()));
}

TEST_F(AwakeProcessorTest, WhatSomebodyElseSetsIsLeftAlone) {
  AwakeProcessor awake = make();
  set(0, "n/a");
  awake.choose(0);
  EXPECT_FALSE(std::filesystem::exists(record()));
  awake.hold();
  awake.release();
  EXPECT_EQ(setting(0), "n/a") << "it is awake already, and stays so";

  set(0, "100");
  awake.choose(0);
  set(0, "300");
  awake.hold();
  EXPECT_EQ(setting(0), "300") << "the record would not be true";
  awake.choose(0);
  EXPECT_EQ(line_of(record()), "0 300");
  awake.hold();
  EXPECT_EQ(setting(0), "n/a");
}

TEST_F(AwakeProcessorTest, WithoutTheSwitchOrARecordNothingHappens) {
  AwakeProcessor awake = make();
  awake.choose(7);
  awake.hold();
  EXPECT_FALSE(std::filesystem::exists(record()));
  AwakeProcessor unrecorded(directory_.path() + "/nowhere/vm1.awake", directory_.path());
  unrecorded.choose(0);
  unrecorded.hold();
  EXPECT_EQ(setting(0), "100") << "nobody could give it back";
}

TEST_F(AwakeProcessorTest, WhatAKilledProcessHeldIsGivenBack) {
  for (const bool held : {true, false}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      AwakeProcessor awake = make();
      awake.choose(1);
      if (held) awake.hold();
      ::kill(::getpid(), SIGKILL);
    }
    ::waitpid(child, nullptr, 0);
    EXPECT_EQ(setting(1), held ? "n/a" : "200");
    if (!held) set(1, "300");
    std::ofstream(directory_.path() + "/vm2.awake") << "no number\n";
    std::ofstream(directory_.path() + "/vm3.awake") << "7 100\n";
    give_back_processors(directory_.path(), directory_.path());
    EXPECT_EQ(setting(1), held ? "200" : "300") << "only what is held";
    EXPECT_EQ(setting(0), "100");
    for (const char* vm : {"/vm1", "/vm2", "/vm3"})
      EXPECT_FALSE(std::filesystem::exists(directory_.path() + vm + ".awake"));
  }
  give_back_processors(directory_.path() + "/nowhere", directory_.path());
}

}  // namespace
}  // namespace remusd::guest
