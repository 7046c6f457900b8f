// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "control/fence.h"

namespace remusd::control {
namespace {

using std::chrono::milliseconds;

class FenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "fence-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  FenceAgent agent(const std::string& script) {
    const std::string path = directory_ + "/agent";
    std::ofstream(path) << "#!/bin/sh\n" << script << "\n";
    ::chmod(path.c_str(), 0700);
    FenceAgent agent;
    agent.command = path;
    agent.timeout_ms = 20000;
    return agent;
  }
  Status run(const FenceAgent& agent) { return run_fence_agent(agent, "a", stop_.get_token()); }
  std::string written(const std::string& name) const {
    std::ifstream file(directory_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string directory_;
  std::stop_source stop_;
};

TEST_F(FenceTest, OptionsComeOnStandardInputAndExitCode0MeansFenced) {
  FenceAgent fence = agent("cat >" + directory_ + "/input");
  fence.options = {{"ip", "10.0.0.9"}, {"username", "admin"}};
  const Status status = run(fence);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(written("input"), "action=off\nip=10.0.0.9\nusername=admin\n");
  fence.options["action"] = "reboot";
  EXPECT_TRUE(run(fence).ok());
  EXPECT_NE(written("input").find("action=reboot\n"), std::string::npos);
}

TEST_F(FenceTest, AFailingAgentIsNotFencedAndItsLastWordsAreTold) {
  const Status status = run(agent("echo no route to the power switch >&2; exit 1"));
  EXPECT_EQ(status.code(), Code::io);
  EXPECT_NE(status.message().find("exit 1: no route to the power switch"), std::string::npos)
      << status.message();
  EXPECT_EQ(run(agent("kill -9 $$")).code(), Code::io);
  FenceAgent missing;
  missing.command = directory_ + "/nothing";
  EXPECT_FALSE(run(missing).ok());
}

TEST_F(FenceTest, AHangingAgentIsKilledWithItsChildrenAndNotFenced) {
  FenceAgent fence = agent("sleep 1000 & echo $! >" + directory_ + "/child; wait");
  fence.timeout_ms = 300;
  EXPECT_EQ(run(fence).code(), Code::timed_out);
  const int child = std::stoi(written("child"));
  const Time deadline = Clock::now() + std::chrono::seconds(20);
  const auto lives = [&] {
    std::ifstream file("/proc/" + std::to_string(child) + "/stat");
    std::string line;
    return std::getline(file, line) && line.find(") Z ") == std::string::npos;
  };
  while (lives() && Clock::now() < deadline) std::this_thread::sleep_for(milliseconds(5));
  EXPECT_FALSE(lives());
}

TEST_F(FenceTest, AnAgentThatClosesItsOutputAndGoesOnIsWaitedFor) {
  EXPECT_EQ(run(agent("exec >&- 2>&-; read line; [ $line = action=off ] && exit 0; exit 3")).code(),
            Code::ok);
}

TEST_F(FenceTest, OneThatIsToldToStopIsGivenUp) {
  std::thread other([this] { stop_.request_stop(); });
  const Status status = run(agent("sleep 1000"));
  other.join();
  EXPECT_EQ(status.code(), Code::timed_out);
  EXPECT_NE(status.message().find("given up"), std::string::npos);
}

TEST_F(FenceTest, WhatItSaysIsBounded) {
  const Status status = run(agent("yes | head -c 3000000; exit 2"));
  EXPECT_EQ(status.code(), Code::io);
  EXPECT_LT(status.message().size(), 1000u);
}

}  // namespace
}  // namespace remusd::control
