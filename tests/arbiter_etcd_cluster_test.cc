// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Three members, of which some die, hang or are cut off.
// Faults of FAULTS.md covered here: 20 (the arbiter is down), 22 (a request that was given up), 23 (both
// race).
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/arbiter_etcd_server.h"
#include "tests/arbiter_requests.h"

namespace remusd::arbiter {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kSettled{10000};  // a new leader is elected within 200 to 400 ms here

class EtcdClusterTest : public testing::Test {
 protected:
  void SetUp() override {
    REMUSD_NEEDS_ETCD();
    cluster_ = std::make_unique<EtcdCluster>(3);
    all_ = open(cluster_->endpoints());
  }
  static std::unique_ptr<Arbiter> open(std::vector<std::string> endpoints) {
    auto opened = open_etcd_arbiter({std::move(endpoints), "", "", ""});
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return *std::move(opened);
  }
  std::unique_ptr<Arbiter> open(size_t member) { return open({cluster_->endpoint(member)}); }
  Verdict win(Arbiter& arbiter, uint64_t generation, milliseconds patience = kSettled) {
    return acquire(arbiter, "vm1", generation - 1, make_record(generation, "a"), in(patience)).verdict;
  }
  std::vector<size_t> others(size_t member) const { return {(member + 1) % 3, (member + 2) % 3}; }
  void expect_unknown(Arbiter& arbiter, uint64_t generation) {
    const milliseconds patience(600);
    Time deadline = in(patience);
    const auto read = arbiter.read("vm1", deadline);
    EXPECT_FALSE(read.ok()) << "a read without a quorum";
    EXPECT_LT(Clock::now(), deadline + kLate);
    deadline = in(patience);
    const Answer answer =
        arbiter.compare_and_swap("vm1", generation - 1, make_record(generation, "x"), deadline);
    EXPECT_EQ(answer.verdict, Verdict::unknown);
    EXPECT_LT(Clock::now(), deadline + kLate);
  }

  std::unique_ptr<EtcdCluster> cluster_;
  std::unique_ptr<Arbiter> all_;
};

TEST_F(EtcdClusterTest, LivesWithoutOneMember) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  const size_t leader = cluster_->leader();
  cluster_->kill(others(leader)[0]);
  EXPECT_EQ(win(*all_, 2, milliseconds(3000)), Verdict::won);
  cluster_->kill(others(leader)[1]);
  expect_unknown(*all_, 3);
}

TEST_F(EtcdClusterTest, LivesWithoutItsLeader) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  cluster_->kill(cluster_->leader());
  EXPECT_EQ(win(*all_, 2, milliseconds(5000)), Verdict::won);
}

TEST_F(EtcdClusterTest, AHungLeaderIsPassedBy) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  const size_t leader = cluster_->leader();
  const size_t other = others(leader)[0];
  const auto arbiter = open({cluster_->endpoint(leader), cluster_->endpoint(other)});
  cluster_->pause(leader);
  EXPECT_EQ(win(*arbiter, 2, milliseconds(5000)), Verdict::won);
  cluster_->resume(leader);
}

TEST_F(EtcdClusterTest, ALeaderThatIsCutOffDoesNotKnow) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  const size_t leader = cluster_->leader();
  const auto alone = open(leader);
  for (const size_t other : others(leader)) cluster_->pause(other);
  expect_unknown(*alone, 2);
  for (const size_t other : others(leader)) cluster_->resume(other);
}

TEST_F(EtcdClusterTest, AFormerLeaderNeverShowsAnOldRecord) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  const size_t former = cluster_->leader();
  const auto stale = open(former);
  const auto quorum = open({cluster_->endpoint(others(former)[0]), cluster_->endpoint(others(former)[1])});
  cluster_->pause(former);
  ASSERT_EQ(win(*quorum, 2), Verdict::won);
  for (const size_t other : others(former)) cluster_->pause(other);
  cluster_->resume(former);
  expect_unknown(*stale, 2);  // It still has generation 1, and thought that it leads.
  for (const size_t other : others(former)) cluster_->resume(other);
  const Time limit = in(kSettled);
  auto read = stale->read("vm1", limit);
  while (!read.ok() && Clock::now() < limit) read = stale->read("vm1", limit);
  ASSERT_TRUE(read.ok() && read->has_value());
  EXPECT_EQ((*read)->generation, 2u);
}

TEST_F(EtcdClusterTest, AnUnknownRequestIsSettledByItsNonceWhenTheQuorumIsBack) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  const size_t leader = cluster_->leader();
  const auto alone = open(leader);
  for (const size_t other : others(leader)) cluster_->pause(other);
  const Record mine = make_record(2, "a"), theirs = make_record(2, "b");
  EXPECT_EQ(alone->compare_and_swap("vm1", 1, mine, in(milliseconds(500))).verdict, Verdict::unknown);
  for (const size_t other : others(leader)) cluster_->resume(other);
  const Answer ours = acquire(*alone, "vm1", 1, mine, in(kSettled));
  EXPECT_EQ(ours.verdict, Verdict::won) << ours.why.message();
  EXPECT_EQ(acquire(*all_, "vm1", 1, theirs, in(kSettled)).verdict, Verdict::lost);
}

TEST_F(EtcdClusterTest, AcquireOutlastsALostQuorum) {
  ASSERT_EQ(win(*all_, 1), Verdict::won);
  const size_t leader = cluster_->leader();
  for (const size_t other : others(leader)) cluster_->pause(other);
  Verdict verdict = Verdict::unknown;
  std::thread asking([&] { verdict = win(*all_, 2); });
  EXPECT_FALSE(open(leader)->read("vm1", in(milliseconds(300))).ok());
  for (const size_t other : others(leader)) cluster_->resume(other);
  asking.join();
  EXPECT_EQ(verdict, Verdict::won);
}

TEST_F(EtcdClusterTest, OfTwoRacersExactlyOneWins) {
  const auto racer_a = open({cluster_->endpoint(0), cluster_->endpoint(1)});
  const auto racer_b = open({cluster_->endpoint(2), cluster_->endpoint(1)});
  for (uint64_t generation = 1; generation <= 100; ++generation) {
    Answer b;
    const Record of_a = make_record(generation, "a"), of_b = make_record(generation, "b");
    std::thread other([&] { b = acquire(*racer_b, "vm1", generation - 1, of_b, in(kSettled)); });
    const Answer a = acquire(*racer_a, "vm1", generation - 1, of_a, in(kSettled));
    other.join();
    ASSERT_NE(a.verdict, Verdict::unknown) << a.why.message();
    ASSERT_NE(b.verdict, Verdict::unknown) << b.why.message();
    ASSERT_NE(a.verdict == Verdict::won, b.verdict == Verdict::won) << "generation " << generation;
    const auto read = all_->read("vm1", in(kSettled));
    ASSERT_TRUE(read.ok());
    ASSERT_EQ(**read, a.verdict == Verdict::won ? of_a : of_b);
  }
}

}  // namespace
}  // namespace remusd::arbiter
