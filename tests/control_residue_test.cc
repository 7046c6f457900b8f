// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <map>

#include "control/residue.h"
#include "guest/sim/memory.h"

namespace remusd::control {
namespace {

using std::chrono::seconds;

/// So many pages that are not zero.
guest::Residue residue_of(uint64_t pages) {
  auto memory = *guest::sim::SimMemory::create(64 * kPageSize);
  for (uint64_t page = 0; page < pages; ++page) memory.inside()[page * kPageSize] = std::byte{1};
  return std::move(memory).leave();
}

class ResiduesTest : public testing::Test {
 protected:
  std::map<std::string, uint64_t> told_;
  Residues residues_{seconds(10), [this](const std::string& vm, uint64_t bytes) { told_[vm] = bytes; }};
  const Time now_ = Clock::now();
};

TEST_F(ResiduesTest, TheNewestOfAGuestIsKeptUntilItIsTaken) {
  residues_.put("vm1", residue_of(3), now_);
  residues_.put("vm1", residue_of(2), now_);
  residues_.put("vm2", residue_of(1), now_);
  EXPECT_EQ(residues_.bytes("vm1"), 2 * kPageSize);
  EXPECT_EQ(told_["vm1"], 2 * kPageSize);
  EXPECT_EQ(residues_.take("vm1").used_bytes(), 2 * kPageSize);
  EXPECT_TRUE(residues_.take("vm1").empty());
  EXPECT_EQ(told_["vm1"], 0u);
  EXPECT_EQ(residues_.bytes("vm2"), kPageSize);
  residues_.drop("vm2");
  EXPECT_EQ(residues_.bytes("vm2"), 0u);
}

TEST_F(ResiduesTest, ItIsGivenUpWhenItIsTooOld) {
  residues_.put("vm1", residue_of(1), now_);
  residues_.put("vm2", residue_of(1), now_ + seconds(5));
  residues_.expire(now_ + seconds(9));
  EXPECT_EQ(residues_.bytes("vm1"), kPageSize);
  residues_.expire(now_ + seconds(10));
  EXPECT_EQ(residues_.bytes("vm1"), 0u);
  EXPECT_EQ(told_["vm1"], 0u);
  EXPECT_EQ(residues_.bytes("vm2"), kPageSize);
}

TEST_F(ResiduesTest, ThereAreOnlySoManyAndTheOldestGoes) {
  for (size_t i = 0; i <= kMaxResidues; ++i)
    residues_.put("vm" + std::to_string(i), residue_of(1), now_ + seconds(i % kMaxResidues == 7 ? -1 : 0));
  EXPECT_EQ(residues_.bytes("vm7"), 0u);
  EXPECT_EQ(residues_.bytes("vm" + std::to_string(kMaxResidues)), kPageSize);
}

TEST(ResiduesOffTest, NothingIsKeptWhenItIsSwitchedOff) {
  Residues residues(Duration::zero(), nullptr);
  residues.put("vm1", residue_of(1), Clock::now());
  EXPECT_EQ(residues.bytes("vm1"), 0u);
  Residues on(seconds(1), nullptr);
  on.put("vm1", {}, Clock::now());
  EXPECT_TRUE(on.take("vm1").empty());
}

}  // namespace
}  // namespace remusd::control
