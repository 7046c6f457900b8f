// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Deltas over a real link: the backup compares its image with the guest's own sum over memory at every epoch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "arbiter/arbiter.h"
#include "primary/protection.h"
#include "tests/primary_fake_backup.h"

namespace remusd::primary {
namespace {

class DeltaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/remusd-delta-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    directory_ = path;
    std::filesystem::create_directories(directory_ + "/arbiter");
    arbiter_ = *arbiter::open_file_arbiter(directory_ + "/arbiter");
    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = 4;
    ASSERT_TRUE(guest::complete_and_validate(&definition_).ok());
    guest::DriverOptions driver;
    driver.runtime_dir = directory_;
    guest_ = *guest::start(definition_, driver);
    net_ = *netbuf::NetBuffer::start({}, {}, "vm1", /*holding=*/false);
    options_.node = "a";
    options_.peer = "b";
    options_.pace.interval = std::chrono::milliseconds(5);
    options_.heartbeat_lost = 500;
    options_.staging_bytes = 4u << 20;
    options_.record_path = directory_ + "/stream";
  }
  void TearDown() override {
    protection_.reset();
    net_.reset();
    if (guest_) (void)guest_->destroy();
    guest_.reset();
    backup_.reset();
    std::filesystem::remove_all(directory_);
  }

  /// Sixty epochs and an orderly end; the sums of their samples.
  EpochSample protect(Script script) {
    backup_ = std::make_unique<FakeBackup>(std::move(script), guest::sim::config_of(definition_).digest(),
                                           guest_->memory().size());
    options_.peer_address = backup_->address();
    Callbacks callbacks;
    callbacks.on_epoch = [this](const EpochSample& sample) {
      const std::lock_guard lock(mutex_);
      sum_.dirty_pages += sample.dirty_pages;
      sum_.same_pages += sample.same_pages;
      sum_.delta_pages += sample.delta_pages;
      sum_.device_bytes += sample.device_bytes;
      sum_.raw_bytes += sample.raw_bytes;
      sum_.sent_bytes += sample.sent_bytes;
    };
    protection_ = *Protection::start(*guest_, definition_, *net_, *arbiter_, options_, std::move(callbacks));
    EXPECT_TRUE(comes([&] { return protection_->snapshot().acked >= 60; }))
        << protection_->snapshot().end.message() << " " << backup_->seen().problem.message();
    during_ = protection_->snapshot();
    protection_->unprotect("enough");
    EXPECT_TRUE(comes([&] { return backup_->seen().ended; }));
    const Status problem = backup_->seen().problem;
    EXPECT_TRUE(problem.ok()) << problem.message();
    protection_.reset();
    const std::lock_guard lock(mutex_);
    return sum_;
  }
  static bool comes(const std::function<bool()>& happened) {
    const Time deadline = Clock::now() + std::chrono::seconds(30);
    while (!happened()) {
      if (Clock::now() > deadline) return false;
      ::poll(nullptr, 0, 1);
    }
    return true;
  }

  std::string directory_;
  std::unique_ptr<arbiter::Arbiter> arbiter_;
  guest::Definition definition_;
  std::unique_ptr<guest::Guest> guest_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  Options options_;
  std::unique_ptr<FakeBackup> backup_;
  std::mutex mutex_;
  EpochSample sum_;
  Snapshot during_;
  std::unique_ptr<Protection> protection_;
};

TEST_F(DeltaTest, AWorkingSetGoesAsWhatChangedInIt) {
  const EpochSample sum = protect({});
  EXPECT_GT(sum.delta_pages, (sum.dirty_pages - sum.same_pages) / 4);
  // The guest writes up to 64 random words at a time, and 4 KiB of device state, of which little changes.
  EXPECT_LT(sum.sent_bytes, sum.raw_bytes / 3);
  EXPECT_EQ(during_.shadow_limit_bytes, 1024 * (kPageSize + 16) + 1024 * 4) << "no more than the guest has";
  EXPECT_GT(during_.shadow_used_bytes, 1024u * 4);
  EXPECT_LE(during_.shadow_used_bytes, during_.shadow_limit_bytes);
  EXPECT_GT(during_.memory_bytes, during_.shadow_limit_bytes);
  const int status = std::system(("/usr/bin/python3 " REMUSD_SOURCE_DIR "/tests/verify_stream.py " +
                                  options_.record_path + " >/dev/null")
                                     .c_str());
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the independent decoder complains";
}

TEST_F(DeltaTest, AShadowThatIsFarTooSmallOnlyCostsBytes) {
  options_.shadow_bytes = 64 * kPageSize;
  const EpochSample sum = protect({});
  EXPECT_GT(sum.delta_pages, 0u);
  EXPECT_EQ(during_.shadow_limit_bytes, 64 * (kPageSize + 16) + 1024 * 4);
  EXPECT_EQ(during_.shadow_used_bytes, during_.shadow_limit_bytes);
}

TEST_F(DeltaTest, WithoutAShadowEveryPageGoesWhole) {
  options_.shadow_bytes = 0;
  const EpochSample sum = protect({});
  EXPECT_EQ(sum.delta_pages + sum.same_pages, 0u);
  EXPECT_EQ(during_.shadow_limit_bytes + during_.shadow_used_bytes, 0u);
}

TEST_F(DeltaTest, ABackupThatDoesNotKnowDeltasGetsNone) {
  Script script;
  script.features = 0;
  const EpochSample sum = protect(script);
  EXPECT_EQ(sum.delta_pages + sum.same_pages, 0u);
}

TEST_F(DeltaTest, AShadowOfLessThanAPageIsRefused) {
  options_.shadow_bytes = 100;
  options_.peer_address = "127.0.0.1:1";
  const auto protection = Protection::start(*guest_, definition_, *net_, *arbiter_, options_, {});
  ASSERT_FALSE(protection.ok());
  EXPECT_THAT(protection.status().message(), ::testing::HasSubstr("shadow_bytes"));
}

}  // namespace
}  // namespace remusd::primary
