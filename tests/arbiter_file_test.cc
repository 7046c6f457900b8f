// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Faults of FAULTS.md covered here: 22 (a request that was given up but committed), 23 (both race).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "arbiter/arbiter.h"
#include "ckpt/scoped_fd.h"

namespace remusd::arbiter {
namespace {

Time soon() {
  return Clock::now() + std::chrono::seconds(10);
}

Record make_record(uint64_t generation, const std::string& owner) {
  return {generation, owner, this_boot_id(), 7, make_nonce(), "b"};
}

class FileArbiterTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "arbiterXXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    auto opened = open_file_arbiter(directory_);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    arbiter_ = *std::move(opened);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string directory_;
  std::unique_ptr<Arbiter> arbiter_;
};

TEST_F(FileArbiterTest, ThereIsNoRecordUntilSomebodyWins) {
  auto record = arbiter_->read("vm1", soon());
  ASSERT_TRUE(record.ok());
  EXPECT_FALSE(record->has_value());
}

TEST_F(FileArbiterTest, TheWinnersRecordIsReadBackWhole) {
  const Record mine = make_record(1, "a");
  EXPECT_EQ(arbiter_->compare_and_swap("vm1", 0, mine, soon()).verdict, Verdict::won);
  auto record = arbiter_->read("vm1", soon());
  ASSERT_TRUE(record.ok() && record->has_value());
  EXPECT_EQ(**record, mine);
}

TEST_F(FileArbiterTest, AnotherGenerationThanExpectedLosesAndShowsTheWinner) {
  const Record first = make_record(1, "a");
  ASSERT_EQ(arbiter_->compare_and_swap("vm1", 0, first, soon()).verdict, Verdict::won);
  const Answer answer = arbiter_->compare_and_swap("vm1", 0, make_record(1, "b"), soon());
  EXPECT_EQ(answer.verdict, Verdict::lost);
  ASSERT_TRUE(answer.current.has_value());
  EXPECT_EQ(*answer.current, first);
}

TEST_F(FileArbiterTest, ExactlyOneOfManyRacersWinsEachGeneration) {
  constexpr int kRacers = 8;
  constexpr uint64_t kRounds = 25;
  for (uint64_t generation = 0; generation < kRounds; ++generation) {
    std::atomic<int> won = 0;
    std::atomic<int> lost = 0;
    std::vector<std::thread> racers;
    for (int racer = 0; racer < kRacers; ++racer) {
      racers.emplace_back([&, racer] {
        auto own = open_file_arbiter(directory_);
        const Record desired = make_record(generation + 1, std::to_string(racer));
        const Answer answer = acquire(**own, "vm1", generation, desired, soon());
        if (answer.verdict == Verdict::won) ++won;
        if (answer.verdict == Verdict::lost) ++lost;
      });
    }
    for (std::thread& racer : racers) racer.join();
    ASSERT_EQ(won, 1);
    ASSERT_EQ(lost, kRacers - 1);
  }
}

TEST_F(FileArbiterTest, ALockHeldBeyondTheDeadlineIsUnknownNotLost) {
  const ScopedFd lock(::open((directory_ + "/vm1.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  struct flock request {};
  request.l_type = F_WRLCK;
  request.l_whence = SEEK_SET;
  ASSERT_EQ(::fcntl(lock.get(), F_OFD_SETLK, &request), 0);
  const Time deadline = Clock::now() + std::chrono::milliseconds(50);
  const Answer answer = arbiter_->compare_and_swap("vm1", 0, make_record(1, "a"), deadline);
  EXPECT_EQ(answer.verdict, Verdict::unknown);
  EXPECT_EQ(answer.why.code(), Code::timed_out);
  EXPECT_EQ(arbiter_->read("vm1", Clock::now()).status().code(), Code::timed_out);
}

TEST_F(FileArbiterTest, ADamagedRecordIsUnknownAndStaysAsItIs) {
  for (const char* text : {"", "{", "[]", "{\"generation\":-1}", "{\"generation\":0,\"owner\":\"a\"}",
                           R"({"generation":0,"owner":"a","boot_id":"","epoch":0,"nonce":"","peer":""})"}) {
    std::ofstream(directory_ + "/vm1.json") << text;
    const Answer answer = arbiter_->compare_and_swap("vm1", 0, make_record(1, "a"), soon());
    EXPECT_EQ(answer.verdict, Verdict::unknown) << text;
    EXPECT_EQ(answer.why.code(), Code::corrupt) << text;
    EXPECT_EQ(std::filesystem::file_size(directory_ + "/vm1.json"), std::string(text).size());
  }
}

TEST_F(FileArbiterTest, NamesThatLeaveTheDirectoryAreRefused) {
  for (const char* name : {"", "..", "../vm1", "a/b", ".hidden"}) {
    EXPECT_EQ(arbiter_->read(name, soon()).status().code(), Code::invalid) << name;
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

TEST_F(FileArbiterTest, ARequestThatTimedOutButCommittedIsRecognisedByItsNonce) {
  ForgetfulArbiter forgetful(*arbiter_, 1);
  EXPECT_EQ(acquire(forgetful, "vm1", 0, make_record(1, "a"), soon()).verdict, Verdict::won);
}

TEST_F(FileArbiterTest, WithoutAnyAnswerAcquireStaysUnknown) {
  ForgetfulArbiter forgetful(*arbiter_, 1 << 20);
  const Time give_up = Clock::now() + std::chrono::milliseconds(50);
  EXPECT_EQ(acquire(forgetful, "vm1", 0, make_record(1, "a"), give_up).verdict, Verdict::unknown);
}

TEST(FileArbiterOpenTest, APathThatIsNoDirectoryIsRefused) {
  EXPECT_EQ(open_file_arbiter("relative").status().code(), Code::invalid);
  EXPECT_EQ(open_file_arbiter("/dev/null").status().code(), Code::invalid);
  EXPECT_EQ(open_file_arbiter("/nonexistent/deeper").status().code(), Code::not_found);
}

}  // namespace
}  // namespace remusd::arbiter
