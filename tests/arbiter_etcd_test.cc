// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One etcd, and what can come between it and us.
// Faults of FAULTS.md covered here: 20 (the arbiter is down), 22 (its answer is lost).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/arbiter_etcd_proxy.h"
#include "tests/arbiter_requests.h"

namespace remusd::arbiter {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using Fault = UnreliableProxy::Fault;

std::unique_ptr<Arbiter> open(std::vector<std::string> endpoints) {
  auto opened = open_etcd_arbiter({std::move(endpoints), "", "", ""});
  EXPECT_TRUE(opened.ok()) << opened.status().message();
  return *std::move(opened);
}

class EtcdTest : public testing::Test {
 protected:
  void SetUp() override {
    REMUSD_NEEDS_ETCD();
    cluster_ = std::make_unique<EtcdCluster>(1);
    direct_ = open(cluster_->endpoints());
  }
  std::optional<Record> record() { return *direct_->read("vm1", soon()); }

  std::unique_ptr<EtcdCluster> cluster_;
  std::unique_ptr<Arbiter> direct_;
};

// The gateway ignores what it does not know: a misspelt compare would always hold, or never.
TEST_F(EtcdTest, UnderstandsEveryWordOfOurRequests) {
  const std::string key = etcd_owner_key("vm1");
  const auto swap = [&](uint64_t revision, const std::string& value) {
    const auto body = cluster_->ask(0, kEtcdTxn, etcd_swap_request(key, revision, value));
    EXPECT_TRUE(body.ok()) << body.status().message();
    const auto answer = decode_etcd_swap(*body, key);
    EXPECT_TRUE(answer.ok()) << answer.status().message() << *body;
    return *answer;
  };
  const auto range = [&] { return *cluster_->ask(0, kEtcdRange, etcd_range_request(key)); };
  EXPECT_FALSE(decode_etcd_range(range(), key)->entry.has_value());
  EXPECT_FALSE(swap(5, "never").swapped);
  EXPECT_FALSE(decode_etcd_range(range(), key)->entry.has_value());
  EXPECT_TRUE(swap(0, "one").swapped);
  const EtcdAnswer refused = swap(0, "never");
  EXPECT_FALSE(refused.swapped);
  ASSERT_TRUE(refused.entry.has_value());
  EXPECT_EQ(refused.entry->value, "one");
  const uint64_t first = refused.entry->mod_revision;
  EXPECT_FALSE(swap(first - 1, "never").swapped);
  EXPECT_FALSE(swap(first + 1, "never").swapped);
  EXPECT_TRUE(swap(first, "two").swapped);
  EXPECT_FALSE(swap(first, "never").swapped);
  EXPECT_EQ(decode_etcd_range(range(), key)->entry->value, "two");
  EXPECT_THAT(range(), testing::Not(HasSubstr("lease")));
}

TEST_F(EtcdTest, AHungServerIsUnknownInTime) {
  cluster_->pause(0);
  Time deadline = in(milliseconds(300));
  const Answer answer = direct_->compare_and_swap("vm1", 0, make_record(1, "a"), deadline);
  EXPECT_LT(Clock::now(), deadline + kLate);
  EXPECT_EQ(answer.verdict, Verdict::unknown);
  EXPECT_EQ(answer.why.code(), Code::timed_out);
  deadline = in(milliseconds(300));
  EXPECT_EQ(direct_->read("vm1", deadline).status().code(), Code::timed_out);
  EXPECT_LT(Clock::now(), deadline + kLate);
  EXPECT_EQ(direct_->read("vm1", Clock::now()).status().code(), Code::timed_out);
  cluster_->resume(0);
  EXPECT_EQ(direct_->compare_and_swap("vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
}

TEST_F(EtcdTest, ADeadServerIsUnknownAtOnceAndNamed) {
  cluster_->kill(0);
  const Time begin = Clock::now();
  const Answer answer = direct_->compare_and_swap("vm1", 0, make_record(1, "a"), soon());
  EXPECT_LT(Clock::now(), begin + std::chrono::seconds(5));
  EXPECT_EQ(answer.verdict, Verdict::unknown);
  EXPECT_EQ(answer.why.code(), Code::unavailable);
  EXPECT_THAT(answer.why.message(), HasSubstr(cluster_->endpoint(0) + ": connect: "));
}

TEST_F(EtcdTest, TheEndpointThatAnsweredIsAskedFirstFromThenOn) {
  const CannedServer deaf("");
  const auto arbiter = open({deaf.endpoint(), "http://127.0.0.1:1", cluster_->endpoint(0)});
  EXPECT_EQ(acquire(*arbiter, "vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
  EXPECT_EQ(acquire(*arbiter, "vm1", 1, make_record(2, "a"), soon()).verdict, Verdict::won);
  EXPECT_EQ(deaf.offered(), 1);
}

TEST_F(EtcdTest, NamesAreLookedUp) {
  const auto arbiter = open({"http://localhost:" + std::to_string(cluster_->port(0))});
  EXPECT_EQ(acquire(*arbiter, "vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
}

TEST_F(EtcdTest, ACommitWhoseAnswerIsLostIsFoundAsWon) {
  for (const Fault fault : {Fault::swallow_answer, Fault::silence}) {
    UnreliableProxy proxy(cluster_->port(0), fault, 1);
    const auto arbiter = open({proxy.endpoint()});
    const uint64_t generation = record() ? record()->generation : 0;
    const Record mine = make_record(generation + 1, "a");
    const Answer lost_answer = arbiter->compare_and_swap("vm1", generation, mine, in(milliseconds(500)));
    EXPECT_EQ(lost_answer.verdict, Verdict::unknown);
    EXPECT_EQ(proxy.met(), 1);
    EXPECT_EQ(record(), mine);  // It did commit.
    EXPECT_EQ(acquire(*arbiter, "vm1", generation, mine, soon()).verdict, Verdict::won);
  }
}

TEST_F(EtcdTest, AcquireSettlesALostAnswerByItself) {
  UnreliableProxy proxy(cluster_->port(0), Fault::swallow_answer, 1);
  const auto arbiter = open({proxy.endpoint()});
  EXPECT_EQ(acquire(*arbiter, "vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
  EXPECT_EQ(proxy.met(), 1);
}

TEST_F(EtcdTest, ALostAnswerIsSettledAtTheNextEndpointWithinOneCall) {
  for (const Fault fault : {Fault::swallow_answer, Fault::silence}) {
    UnreliableProxy proxy(cluster_->port(0), fault, 1);
    const auto arbiter = open({proxy.endpoint(), cluster_->endpoint(0)});
    const uint64_t generation = record() ? record()->generation : 0;
    const Record mine = make_record(generation + 1, "a");
    const Answer answer = arbiter->compare_and_swap("vm1", generation, mine, soon());
    EXPECT_EQ(answer.verdict, Verdict::won) << answer.why.message();
    EXPECT_EQ(proxy.met(), 1);
    EXPECT_EQ(record(), mine);
  }
}

TEST_F(EtcdTest, ARequestThatArrivesAfterItWasRepeatedChangesNothing) {
  UnreliableProxy proxy(cluster_->port(0), Fault::hold_request, 1);
  const auto arbiter = open({proxy.endpoint(), cluster_->endpoint(0)});
  ASSERT_EQ(arbiter->compare_and_swap("vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
  EXPECT_EQ(proxy.met(), 1);
  const Record next = make_record(2, "b");
  ASSERT_EQ(direct_->compare_and_swap("vm1", 1, next, soon()).verdict, Verdict::won);
  proxy.release();
  EXPECT_EQ(record(), next);
}

// Won and superseded, or never installed: within one call that cannot be told apart, and `lost` would be a
// guess.
TEST_F(EtcdTest, ARecordThatHasGoneFurtherMeanwhileIsUnknownAndThenLost) {
  const Record mine = make_record(1, "a"), next = make_record(2, "b");
  UnreliableProxy proxy(cluster_->port(0), Fault::swallow_answer, 1);
  proxy.set_after_commit(
      [&] { EXPECT_EQ(direct_->compare_and_swap("vm1", 1, next, soon()).verdict, Verdict::won); });
  const auto arbiter = open({proxy.endpoint(), cluster_->endpoint(0)});
  const Answer answer = arbiter->compare_and_swap("vm1", 0, mine, soon());
  EXPECT_EQ(answer.verdict, Verdict::unknown);
  EXPECT_EQ(answer.current, next);
  EXPECT_EQ(acquire(*arbiter, "vm1", 0, mine, soon()).verdict, Verdict::lost);
}

TEST_F(EtcdTest, LostIsFinalAlsoForARequestThatIsStillOnItsWay) {
  UnreliableProxy proxy(cluster_->port(0), Fault::hold_request, 1);
  const auto slow = open({proxy.endpoint()});
  const Record mine = make_record(1, "a"), theirs = make_record(1, "b");
  EXPECT_EQ(slow->compare_and_swap("vm1", 0, mine, in(milliseconds(300))).verdict, Verdict::unknown);
  EXPECT_EQ(acquire(*direct_, "vm1", 0, theirs, soon()).verdict, Verdict::won);
  EXPECT_EQ(acquire(*slow, "vm1", 0, mine, soon()).verdict, Verdict::lost);
  proxy.release();
  EXPECT_EQ(record(), theirs);
}

TEST_F(EtcdTest, AnUnknownRequestMayStillCommitAndIsThenRecognised) {
  UnreliableProxy proxy(cluster_->port(0), Fault::hold_request, 1);
  const auto slow = open({proxy.endpoint()});
  const Record mine = make_record(1, "a"), theirs = make_record(1, "b");
  EXPECT_EQ(slow->compare_and_swap("vm1", 0, mine, in(milliseconds(300))).verdict, Verdict::unknown);
  proxy.release();
  EXPECT_EQ(acquire(*direct_, "vm1", 0, theirs, soon()).verdict, Verdict::lost);
  EXPECT_EQ(acquire(*slow, "vm1", 0, mine, soon()).verdict, Verdict::won);
}

TEST_F(EtcdTest, EndpointsOfTwoClustersAreNoArbiter) {
  EtcdCluster other(1);
  const auto arbiter = open({cluster_->endpoint(0), other.endpoint(0)});
  EXPECT_EQ(acquire(*arbiter, "vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
  cluster_->kill(0);
  const auto read = arbiter->read("vm1", soon());
  EXPECT_EQ(read.status().code(), Code::corrupt);
  EXPECT_THAT(read.status().message(), HasSubstr("another etcd cluster"));
  EXPECT_EQ(arbiter->compare_and_swap("vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::unknown);
}

TEST(EtcdAnswerTest, NonsenseIsUnknown) {
  const auto with_body = [](const std::string& status, const std::string& body) {
    return "HTTP/1.1 " + status + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  };
  const std::vector<std::string> answers = {
      "SSH-2.0-OpenSSH_9.2\r\n",
      "HTTP/1.1 200 OK\r\n\r\n",
      with_body("200 OK", "{}"),
      with_body("200 OK", "<html>welcome</html>"),
      with_body("503 Service Unavailable", R"({"error":"etcdserver: no leader","code":14})"),
      with_body("301 Moved", ""),
      "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{",
      "HTTP/1.1 200 OK\r\nX: " + std::string(100000, 'x') + "\r\n\r\n",
      "HTTP/1.1 200 OK\r\n\r\n" + std::string(200000, ' '),
  };
  for (const std::string& answer : answers) {
    const CannedServer server(answer);
    const auto arbiter = open({server.endpoint()});
    const Answer got = arbiter->compare_and_swap("vm1", 0, make_record(1, "a"), in(milliseconds(3000)));
    EXPECT_EQ(got.verdict, Verdict::unknown) << answer.substr(0, 60);
    EXPECT_FALSE(got.why.message().empty());
    EXPECT_FALSE(arbiter->read("vm1", in(milliseconds(3000))).ok()) << answer.substr(0, 60);
  }
}

TEST(EtcdAnswerTest, TheServersOwnWordsAreTold) {
  const CannedServer server(
      "HTTP/1.1 503 No\r\nContent-Length: 33\r\n\r\n{\"error\":\"etcdserver: no leader\"}");
  const auto read = open({server.endpoint()})->read("vm1", soon());
  EXPECT_THAT(read.status().message(), HasSubstr("HTTP 503: etcdserver: no leader"));
}

TEST(EtcdOptionsTest, WhatCannotBeAskedIsRefused) {
  const auto code = [](const EtcdOptions& options) { return open_etcd_arbiter(options).status().code(); };
  EXPECT_EQ(code({{}, "", "", ""}), Code::invalid);
  EXPECT_EQ(code({std::vector<std::string>(17, "http://10.0.0.1"), "", "", ""}), Code::invalid);
  EXPECT_EQ(code({{"10.0.0.1:2379"}, "", "", ""}), Code::invalid);
  EXPECT_EQ(code({{"https://10.0.0.1"}, "", "/cert", ""}), Code::invalid);
  EXPECT_EQ(code({{"https://10.0.0.1"}, "/nonexistent", "", ""}), Code::invalid);
  EXPECT_EQ(code({{"https://10.0.0.1", "http://10.0.0.2"}, "/ca", "", ""}), Code::invalid);
  EXPECT_EQ(code({{"http://10.0.0.1", "http://[::1]:2379"}, "", "", ""}), Code::ok);
}

}  // namespace
}  // namespace remusd::arbiter
