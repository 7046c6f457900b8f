// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "disk/drive.h"
#include "tests/assert_ok.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {
namespace {

using nbd::Command;

/// One client that does one thing after the other.
class DriveTest : public testing::Test, public Drive::Owner {
 protected:
  DriveTest() {
    const std::string path = folder_.path() + "/disk";
    const ScopedFd made(::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    EXPECT_EQ(::ftruncate(made.get(), 1 << 20), 0);
    auto file = LocalFile::open(path);
    EXPECT_TRUE(file.ok());
    file_.emplace(*std::move(file));
    EXPECT_TRUE(ring_.open().ok());
    drive_.emplace(*file_, &ring_, this);
  }

  /// Until it is answered; then the client is busy with the answer.
  void ask(Command command) {
    Job job;
    job.drive = &*drive_;
    job.request.command = command;
    job.request.bytes = command == Command::write ? 4096 : 0;
    job.content = pool_.take(4096);
    answered_ = false;
    command == Command::write ? drive_->change(&job) : drive_->flush(&job);
    while (!answered_) ring_.wait(std::chrono::seconds(1));
    drive_->sync_ahead();
  }
  void ask(std::initializer_list<Command> commands) {
    for (const Command command : commands) ask(command);
  }
  bool clean() const { return drive_->clean(); }
  /// The next single write is made good ahead; at the latest when a medium that was slow is trusted again.
  bool made_good_ahead() {
    const Time deadline = Clock::now() + std::chrono::seconds(30);
    while (Clock::now() < deadline) {
      ask(kWrite);
      if (clean()) return true;
      ask(kFlush);
    }
    return false;
  }

  static constexpr Command kWrite = Command::write, kFlush = Command::flush;

 private:
  void done(Job* /*job*/, int error) override {
    EXPECT_EQ(error, 0);
    answered_ = true;
  }
  void flushed_later(int /*error*/) override { ADD_FAILURE(); }
  void changed(Job* /*job*/, int error) override { EXPECT_EQ(error, 0); }
  bool one_job() const override { return !answered_; }

  TemporaryDirectory folder_;
  std::optional<LocalFile> file_;
  OperationRing ring_;
  BufferPool pool_{1 << 20};
  std::optional<Drive> drive_;
  bool answered_ = false;
};

TEST_F(DriveTest, MakesGoodAheadWhatIsAlwaysFlushed) {
  for (int i = 0; i < 4; ++i) {
    ask(kWrite);
    EXPECT_FALSE(clean()) << i;
    ask(kFlush);
    EXPECT_TRUE(clean());
  }
  EXPECT_TRUE(made_good_ahead());
  ask(kFlush);
  EXPECT_TRUE(made_good_ahead());
}

TEST_F(DriveTest, AWriteThatWasNotFlushedEndsThat) {
  EXPECT_TRUE(made_good_ahead());
  ask({kWrite, kWrite});
  EXPECT_FALSE(clean());
  for (int i = 0; i < 4; ++i) {
    ask({kFlush, kWrite});
    EXPECT_FALSE(clean()) << i;
  }
  ask(kFlush);
  EXPECT_TRUE(made_good_ahead());
}

TEST_F(DriveTest, WritesThatAreFlushedTogetherAreNotMadeGoodAhead) {
  for (int i = 0; i < 10; ++i) {
    ask({kWrite, kWrite});
    EXPECT_FALSE(clean());
    ask(kFlush);
  }
}

}  // namespace
}  // namespace remusd::disk
