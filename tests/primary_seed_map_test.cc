// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a backup may tell of its memory and when; a wrong word ends the session and not the guest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <cstdlib>
#include <filesystem>

#include "arbiter/arbiter.h"
#include "primary/protection.h"
#include "primary/seed_map.h"
#include "tests/primary_fake_backup.h"

namespace remusd::primary {
namespace {

using ckpt::Bytes;
using ::testing::HasSubstr;

constexpr uint64_t kPages = 1024;  // of the guest below

/// `bytes` is the digests' storage.
ckpt::Seed seed_of(const PageSet& runs, Bytes* bytes, bool last = false, int key = 0) {
  bytes->assign(page_count(runs) * sizeof(ckpt::PageDigest), std::byte{9});
  ckpt::Seed seed;
  seed.key.fill(static_cast<std::byte>(key));
  seed.runs = runs;
  seed.last = last;
  seed.digests = *bytes;
  return seed;
}
Bytes body_of(const PageSet& runs, bool last = false, int key = 0) {
  Bytes digests, body;
  ckpt::encode(seed_of(runs, &digests, last, key), &body);
  return body;
}

class SeedMapTest : public ::testing::Test {
 protected:
  Status add(const PageSet& runs, bool last = false, int key = 0) {
    Bytes digests;
    return map_->add(seed_of(runs, &digests, last, key));
  }
  std::unique_ptr<SeedMap> map_ = *SeedMap::make(kPages);
};

TEST_F(SeedMapTest, ItKnowsWhatWasToldAndNothingElse) {
  ASSERT_TRUE(add({{0, 2}, {5, 1}}).ok());
  ASSERT_TRUE(add({{6, 1}, {kPages - 1, 1}}).ok());
  EXPECT_FALSE(map_->complete());
  ASSERT_TRUE(add({}, /*last=*/true).ok());
  EXPECT_TRUE(map_->complete());
  EXPECT_EQ(map_->pages(), 5u);
  for (uint64_t page = 0; page < kPages; ++page)
    EXPECT_EQ(map_->has(page), page < 2 || page == 5 || page == 6 || page == kPages - 1) << page;
  EXPECT_EQ(map_->digest(6), (ckpt::PageDigest{0x0909090909090909, 0x0909090909090909}));
}

TEST_F(SeedMapTest, PagesOutOfOrderToldTwiceOrOutsideAreRefused) {
  ASSERT_TRUE(add({{10, 5}}).ok());
  for (const PageSet& runs : {PageSet{{9, 1}}, PageSet{{14, 1}}, PageSet{{10, 5}}, PageSet{{kPages, 1}},
                              PageSet{{kPages - 1, 2}}, PageSet{{uint64_t{1} << 50, 1}}}) {
    const Status status = add(runs);
    EXPECT_EQ(status.code(), Code::corrupt) << runs[0].first;
  }
}

TEST_F(SeedMapTest, AnotherKeyAndAnythingAfterTheLastAreRefused) {
  ASSERT_TRUE(add({{10, 5}}).ok());
  EXPECT_THAT(add({{20, 1}}, false, 1).message(), HasSubstr("key"));
  ASSERT_TRUE(add({{30, 1}}, true).ok());
  EXPECT_THAT(add({{40, 1}}).message(), HasSubstr("after the last"));
  EXPECT_EQ(add({}, true).code(), Code::corrupt);
}

class SeedSession : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/remusd-seed-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    directory_ = path;
    std::filesystem::create_directories(directory_ + "/arbiter");
    arbiter_ = *arbiter::open_file_arbiter(directory_ + "/arbiter");
    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = kPages * kPageSize >> 20;
    ASSERT_TRUE(guest::complete_and_validate(&definition_).ok());
    guest::DriverOptions driver;
    driver.runtime_dir = directory_;
    guest_ = *guest::start(definition_, driver);
    net_ = *netbuf::NetBuffer::start({}, {}, "vm1", /*holding=*/false);
  }
  void TearDown() override {
    protection_.reset();
    net_.reset();
    if (guest_) (void)guest_->destroy();
    guest_.reset();
    backup_.reset();
    std::filesystem::remove_all(directory_);
  }
  void protect(const Script& script) {
    protection_.reset();
    backup_ = std::make_unique<FakeBackup>(script, guest::sim::config_of(definition_).digest(),
                                           guest_->memory().size());
    Options options;
    options.node = "a";
    options.peer = "b";
    options.pace.interval = std::chrono::milliseconds(5);
    options.heartbeat_lost = 500;
    options.peer_address = backup_->address();
    protection_ = *Protection::start(*guest_, definition_, *net_, *arbiter_, options, {});
  }
  bool comes(const std::function<bool()>& happened) {
    const Time deadline = Clock::now() + std::chrono::seconds(30);
    while (!happened()) {
      if (Clock::now() > deadline) return false;
      ::poll(nullptr, 0, 1);
    }
    return true;
  }
  /// The session ends, and the guest runs on.
  std::string end() {
    EXPECT_TRUE(comes([&] { return protection_->snapshot().state == State::unprotected; }));
    EXPECT_TRUE(guest_->pause().ok());
    EXPECT_TRUE(guest_->resume().ok());
    EXPECT_EQ(protection_->snapshot().end.code(), Code::corrupt) << protection_->snapshot().end.message();
    return protection_->snapshot().end.message();
  }
  static Script seeding(std::vector<Bytes> seeds) {
    Script script;
    script.features |= ckpt::kFeatureSeed;
    script.seeds = std::move(seeds);
    return script;
  }

  std::string directory_;
  guest::Definition definition_;
  std::unique_ptr<arbiter::Arbiter> arbiter_;
  std::unique_ptr<guest::Guest> guest_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  std::unique_ptr<FakeBackup> backup_;
  std::unique_ptr<Protection> protection_;
};

TEST_F(SeedSession, NothingIsSentBeforeTheLastWord) {
  protect(seeding({body_of({{0, 100}})}));
  ASSERT_TRUE(comes([&] { return backup_->seen().heartbeats > 5; }));
  EXPECT_EQ(protection_->snapshot().state, State::syncing);
  EXPECT_EQ(protection_->snapshot().sync_sent_pages, 0u);
  protection_->unprotect("enough");
  EXPECT_TRUE(comes([&] { return protection_->snapshot().state == State::unprotected; }));
}

TEST_F(SeedSession, DigestsThatFitNothingCostOnlyBytes) {
  protect(seeding({body_of({{0, 100}}), body_of({{200, kPages - 200}}, true)}));
  ASSERT_TRUE(comes([&] { return protection_->snapshot().acked >= 10; }))
      << backup_->seen().problem.message();
  EXPECT_EQ(protection_->snapshot().resync_pages_total, kPages - 100);
  EXPECT_EQ(protection_->snapshot().resync_pages_matched, 0u);
}

TEST_F(SeedSession, AWrongSeedEndsTheSession) {
  Bytes too_long = body_of({{0, 1}});
  too_long.resize(too_long.size() + 16);
  const std::vector<std::pair<std::vector<Bytes>, std::string>> cases{
      {{too_long}, "too many"},
      {{body_of({{0, 10}}), body_of({{5, 1}})}, "out of order"},
      {{body_of({{0, 10}}), body_of({{0, 10}})}, "told twice"},
      {{body_of({{kPages - 1, 2}})}, "outside the memory"},
      {{body_of({{0, 1}}), body_of({{1, 1}}, true, 1)}, "key"},
      {{body_of({}, true), body_of({{0, 1}})}, "out of its turn"},
      {{Bytes(10)}, "cut off"}};
  for (const auto& [seeds, why] : cases) {
    protect(seeding(seeds));
    EXPECT_THAT(end(), HasSubstr(why));
  }
}

TEST_F(SeedSession, ASeedThatWasNotAgreedOnEndsTheSession) {
  Script script = seeding({body_of({{0, 1}}, true)});
  script.features = ckpt::kFeatureDelta;
  protect(script);
  EXPECT_THAT(end(), HasSubstr("out of its turn"));
}

TEST_F(SeedSession, ASeedAfterTheSyncEndsTheSession) {
  Script script = seeding({body_of({}, true)});
  script.late_seeds = {body_of({{0, 1}}, true)};
  protect(script);
  EXPECT_THAT(end(), HasSubstr("out of its turn"));
}

}  // namespace
}  // namespace remusd::primary
