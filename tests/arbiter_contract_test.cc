// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What arbiter.h promises, asked of every implementation.
// Faults of FAULTS.md covered here: 22 (a request that was given up but committed), 23 (both race).
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>
#include <vector>

#include "arbiter/arbiter.h"
#include "arbiter/record_json.h"
#include "tests/arbiter_etcd_server.h"
#include "tests/arbiter_requests.h"
#include "tests/temporary_directory.h"

namespace remusd::arbiter {
namespace {

/// A place where records are kept, and a way past the arbiter.
class Store {
 public:
  virtual ~Store() = default;
  virtual Result<std::unique_ptr<Arbiter>> open() = 0;
  virtual void put(const std::string& vm, const std::string& text) = 0;
  virtual std::string get(const std::string& vm) = 0;
};

class FileStore final : public Store {
 public:
  Result<std::unique_ptr<Arbiter>> open() override { return open_file_arbiter(directory_.path()); }
  void put(const std::string& vm, const std::string& text) override { std::ofstream(path(vm)) << text; }
  std::string get(const std::string& vm) override {
    std::ifstream file(path(vm));
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  std::string path(const std::string& vm) const { return directory_.path() + "/" + vm + ".json"; }
  TemporaryDirectory directory_;
};

class EtcdStore final : public Store {
 public:
  Result<std::unique_ptr<Arbiter>> open() override {
    return open_etcd_arbiter({cluster_.endpoints(), "", "", ""});
  }
  void put(const std::string& vm, const std::string& text) override {
    const std::string key = etcd_owner_key(vm);
    const auto before = decode_etcd_range(*cluster_.ask(0, kEtcdRange, etcd_range_request(key)), key);
    const uint64_t revision = before->entry ? before->entry->mod_revision : 0;
    const auto answer = cluster_.ask(0, kEtcdTxn, etcd_swap_request(key, revision, text));
    ASSERT_TRUE(answer.ok() && decode_etcd_swap(*answer, key)->swapped);
  }
  std::string get(const std::string& vm) override {
    const std::string key = etcd_owner_key(vm);
    return decode_etcd_range(*cluster_.ask(0, kEtcdRange, etcd_range_request(key)), key)->entry->value;
  }

 private:
  EtcdCluster cluster_{1};
};

class ArbiterContract : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (std::string(GetParam()) == "etcd") {
      REMUSD_NEEDS_ETCD();
      store_ = std::make_unique<EtcdStore>();
    } else {
      store_ = std::make_unique<FileStore>();
    }
    arbiter_ = open();
  }
  std::unique_ptr<Arbiter> open() {
    auto opened = store_->open();
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return *std::move(opened);
  }

  std::unique_ptr<Store> store_;
  std::unique_ptr<Arbiter> arbiter_;
};

TEST_P(ArbiterContract, ThereIsNoRecordUntilSomebodyWins) {
  auto record = arbiter_->read("vm1", soon());
  ASSERT_TRUE(record.ok()) << record.status().message();
  EXPECT_FALSE(record->has_value());
}

TEST_P(ArbiterContract, TheWinnersRecordIsReadBackWholeByAnybody) {
  const Record mine = make_record(1, "a");
  const Answer answer = arbiter_->compare_and_swap("vm1", 0, mine, soon());
  EXPECT_EQ(answer.verdict, Verdict::won) << answer.why.message();
  const auto other = open();
  for (Arbiter* reader : {arbiter_.get(), other.get()}) {
    auto record = reader->read("vm1", soon());
    ASSERT_TRUE(record.ok() && record->has_value());
    EXPECT_EQ(**record, mine);
  }
}

TEST_P(ArbiterContract, AnotherGenerationThanExpectedLosesAndShowsTheWinner) {
  const Record first = make_record(1, "a");
  ASSERT_EQ(arbiter_->compare_and_swap("vm1", 0, first, soon()).verdict, Verdict::won);
  const Answer answer = arbiter_->compare_and_swap("vm1", 0, make_record(1, "b"), soon());
  EXPECT_EQ(answer.verdict, Verdict::lost);
  ASSERT_TRUE(answer.current.has_value());
  EXPECT_EQ(*answer.current, first);
  EXPECT_EQ(arbiter_->compare_and_swap("vm1", 2, make_record(3, "b"), soon()).verdict, Verdict::lost);
  EXPECT_EQ(**arbiter_->read("vm1", soon()), first);
}

TEST_P(ArbiterContract, WhoExpectsARecordWhereThereIsNoneLoses) {
  const Answer answer = arbiter_->compare_and_swap("vm1", 3, make_record(4, "a"), soon());
  EXPECT_EQ(answer.verdict, Verdict::lost);
  EXPECT_FALSE(answer.current.has_value());
  EXPECT_FALSE(arbiter_->read("vm1", soon())->has_value());
}

TEST_P(ArbiterContract, EachWriteIsSeenByTheNextReadElsewhere) {
  const auto other = open();
  for (uint64_t generation = 1; generation <= 50; ++generation) {
    Arbiter& writer = generation % 2 == 0 ? *arbiter_ : *other;
    Arbiter& reader = generation % 2 == 0 ? *other : *arbiter_;
    const Record record = make_record(generation, "a");
    ASSERT_EQ(writer.compare_and_swap("vm1", generation - 1, record, soon()).verdict, Verdict::won);
    ASSERT_EQ(**reader.read("vm1", soon()), record);
  }
}

TEST_P(ArbiterContract, GuestsHaveRecordsOfTheirOwn) {
  const Record one = make_record(1, "a"), two = make_record(1, "b");
  ASSERT_EQ(arbiter_->compare_and_swap("vm1", 0, one, soon()).verdict, Verdict::won);
  ASSERT_EQ(arbiter_->compare_and_swap("vm2", 0, two, soon()).verdict, Verdict::won);
  EXPECT_EQ(**arbiter_->read("vm1", soon()), one);
  EXPECT_EQ(**arbiter_->read("vm2", soon()), two);
}

TEST_P(ArbiterContract, ExactlyOneOfManyRacersWinsEachGeneration) {
  constexpr int kRacers = 8;
  constexpr uint64_t kRounds = 25;
  for (uint64_t generation = 0; generation < kRounds; ++generation) {
    std::atomic<int> won = 0, lost = 0;
    std::vector<std::thread> racers;
    for (int racer = 0; racer < kRacers; ++racer) {
      racers.emplace_back([&, racer] {
        const auto own = open();
        const Record desired = make_record(generation + 1, std::to_string(racer));
        const Answer answer = acquire(*own, "vm1", generation, desired, soon());
        if (answer.verdict == Verdict::won) ++won;
        if (answer.verdict == Verdict::lost) ++lost;
      });
    }
    for (std::thread& racer : racers) racer.join();
    ASSERT_EQ(won, 1);
    ASSERT_EQ(lost, kRacers - 1);
  }
}

TEST_P(ArbiterContract, OneArbiterServesManyThreads) {
  std::atomic<int> won = 0;
  std::vector<std::thread> racers;
  for (int racer = 0; racer < 8; ++racer) {
    racers.emplace_back([&, racer] {
      const Record desired = make_record(1, std::to_string(racer));
      if (acquire(*arbiter_, "vm1", 0, desired, soon()).verdict == Verdict::won) ++won;
    });
  }
  for (std::thread& racer : racers) racer.join();
  EXPECT_EQ(won, 1);
}

TEST_P(ArbiterContract, ADamagedRecordIsUnknownAndStaysAsItIs) {
  for (const std::string text :
       {"", "{", "[]", "{\"generation\":-1}", "{\"generation\":0,\"owner\":\"a\"}",
        R"({"generation":0,"owner":"a","boot_id":"","epoch":0,"nonce":"","peer":""})"}) {
    store_->put("vm1", text);
    const Answer answer = arbiter_->compare_and_swap("vm1", 0, make_record(1, "a"), soon());
    EXPECT_EQ(answer.verdict, Verdict::unknown) << text;
    EXPECT_EQ(answer.why.code(), Code::corrupt) << text;
    EXPECT_EQ(arbiter_->read("vm1", soon()).status().code(), Code::corrupt) << text;
    EXPECT_EQ(store_->get("vm1"), text);
  }
}

TEST_P(ArbiterContract, ARecordThatAnOperatorRepairedCounts) {
  const Record repaired = make_record(8, "a");
  store_->put("vm1", encode_record(repaired) + "\n");
  EXPECT_EQ(**arbiter_->read("vm1", soon()), repaired);
  EXPECT_EQ(arbiter_->compare_and_swap("vm1", 7, make_record(8, "b"), soon()).verdict, Verdict::lost);
  EXPECT_EQ(arbiter_->compare_and_swap("vm1", 8, make_record(9, "b"), soon()).verdict, Verdict::won);
}

TEST_P(ArbiterContract, WhatIsNoGuestNameIsRefused) {
  for (const std::string name : {"", "..", "../vm1", "a/b", ".hidden"}) {
    EXPECT_EQ(arbiter_->read(name, soon()).status().code(), Code::invalid) << name;
    const Answer answer = arbiter_->compare_and_swap(name, 0, make_record(1, "a"), soon());
    EXPECT_EQ(answer.verdict, Verdict::unknown) << name;
  }
}

/// Commits, but says that it does not know: a request that the client gave up.
class ForgetfulArbiter final : public Arbiter {
 public:
  ForgetfulArbiter(Arbiter& inner, int lies) : inner_(inner), lies_(lies) {}
  Result<std::optional<Record>> read(const std::string& vm, Time deadline) override {
    return inner_.read(vm, deadline);
  }
  Answer compare_and_swap(const std::string& vm, uint64_t expected, const Record& desired,
                          Time deadline) override {
    Answer answer = inner_.compare_and_swap(vm, expected, desired, deadline);
    if (lies_-- > 0) return {Verdict::unknown, std::nullopt, {Code::timed_out, "no answer"}};
    return answer;
  }
  std::string describe() const override { return "forgetful"; }

 private:
  Arbiter& inner_;
  int lies_;
};

TEST_P(ArbiterContract, ARequestThatTimedOutButCommittedIsRecognisedByItsNonce) {
  ForgetfulArbiter forgetful(*arbiter_, 1);
  EXPECT_EQ(acquire(forgetful, "vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
}

TEST_P(ArbiterContract, WithoutAnyAnswerAcquireStaysUnknown) {
  ForgetfulArbiter forgetful(*arbiter_, 1 << 20);
  const Time give_up = Clock::now() + std::chrono::milliseconds(50);
  EXPECT_EQ(acquire(forgetful, "vm1", 0, make_record(1, "a"), give_up).verdict, Verdict::unknown);
}

TEST_P(ArbiterContract, TheNextGenerationIsWonByTheOwnerOnly) {
  EXPECT_EQ(*win_next_generation(*arbiter_, "vm1", "a", "b", soon()), 1u);
  EXPECT_EQ(*win_next_generation(*arbiter_, "vm1", "a", "", soon()), 2u);
  EXPECT_EQ(win_next_generation(*arbiter_, "vm1", "b", "", soon()).status().code(), Code::unsafe);
}

INSTANTIATE_TEST_SUITE_P(Every, ArbiterContract, testing::Values("file", "etcd"),
                         [](const auto& which) { return std::string(which.param); });

}  // namespace
}  // namespace remusd::arbiter
