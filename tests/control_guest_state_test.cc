// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "control/guest_state_file.h"

namespace remusd::control {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class GuestStateTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (std::filesystem::temp_directory_path() / "remusd-state-XXXXXX").string();
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
    std::filesystem::create_directory(directory_ + "/guests");
    state_.vm = state_.definition.name = "vm1";
    state_.definition.nics.emplace_back();
    ASSERT_TRUE(guest::complete_and_validate(&state_.definition).ok());
    state_.wanted = true;
    state_.peer = "b";
    state_.pace.max_slowdown = 0.25;
    identify(::getpid(), &state_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string file() const { return directory_ + "/guests/vm1.json"; }
  std::string text() const {
    std::ifstream in(file());
    return {std::istreambuf_iterator<char>(in), {}};
  }
  Status load_text(const std::string& content) const {
    std::ofstream(file()) << content;
    return load_guest_state(directory_, "vm1").status();
  }

  std::string directory_;
  GuestState state_;
};

TEST_F(GuestStateTest, WhatWasSavedIsLoadedAgain) {
  ASSERT_TRUE(save_guest_state(directory_, state_).ok());
  const auto loaded = load_guest_state(directory_, "vm1");
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(*loaded, state_);
  EXPECT_THAT(saved_guests(directory_, 8), ElementsAre("vm1"));
  forget_guest_state(directory_, "vm1");
  EXPECT_EQ(load_guest_state(directory_, "vm1").status().code(), Code::not_found);
}

TEST_F(GuestStateTest, AStandbyIsItsProcessAndNothingMore) {
  GuestState standby;
  standby.vm = "vm1";
  standby.standby = true;
  identify(::getpid(), &standby);
  ASSERT_TRUE(save_guest_state(directory_, standby).ok());
  EXPECT_EQ(*load_guest_state(directory_, "vm1"), standby);
}

TEST_F(GuestStateTest, DamageOfAnyByteIsRefusedOrHarmless) {
  ASSERT_TRUE(save_guest_state(directory_, state_).ok());
  const std::string good = text();
  for (size_t at = 0; at < good.size(); at += 3) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x15);
    (void)load_text(bad);  // never a crash; what is accepted is a valid state
    (void)load_text(good.substr(0, at));
  }
  for (const char* bad : {"", "[]", "{}", "{\"version\":1}", "null"}) {
    const Status refused = load_text(bad);
    EXPECT_EQ(refused.code(), Code::corrupt) << bad;
    EXPECT_THAT(refused.message(), HasSubstr("vm1.json"));
  }
}

TEST_F(GuestStateTest, AnotherGuestsFileOrAnotherVersionIsRefused) {
  ASSERT_TRUE(save_guest_state(directory_, state_).ok());
  std::string other = text();
  other.replace(other.find("\"version\":1"), 11, "\"version\":2");
  EXPECT_EQ(load_text(other).code(), Code::corrupt);
  ASSERT_TRUE(save_guest_state(directory_, state_).ok());
  std::filesystem::rename(file(), directory_ + "/guests/vm2.json");
  EXPECT_EQ(load_guest_state(directory_, "vm2").status().code(), Code::corrupt);
}

TEST_F(GuestStateTest, OnlyTheVeryProcessIsTakenForItAndEnded) {
  EXPECT_TRUE(lives(state_));
  GuestState later = state_;
  later.started += "1";
  EXPECT_FALSE(lives(later)) << "another process with that number";
  EXPECT_TRUE(end_process(later).ok()) << "and it is left alone";
  GuestState rebooted = state_;
  rebooted.boot_id = "another";
  EXPECT_FALSE(lives(rebooted));
  EXPECT_TRUE(end_process(rebooted).ok());

  const pid_t child = ::fork();
  if (child == 0) {
    while (true) ::pause();
  }
  GuestState running = state_;
  identify(child, &running);
  EXPECT_TRUE(lives(running));
  EXPECT_TRUE(end_process(running).ok());
  EXPECT_FALSE(lives(running));
}

}  // namespace
}  // namespace remusd::control
