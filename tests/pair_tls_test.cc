// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// primary::Protection and backup::Session with keys that do not fit: neither speaks, both say why, the guest
// is left in peace. What goes on over good keys pair_sim_test.cc shows. FAULTS.md 43, 44.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <filesystem>
#include <functional>

#include "backup/session.h"
#include "primary/protection.h"
#include "tests/ckpt_tls_keys.h"
#include "tests/loopback.h"
#include "tests/patience.h"

namespace remusd {
namespace {

using testing::HasSubstr;

class PairTls : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/remusd-pair-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    definition_.name = "vm1";
    definition_.driver = "sim";
    definition_.memory_mib = 4;
    ASSERT_TRUE(guest::complete_and_validate(&definition_).ok());
    driver_.runtime_dir = directory_;
    guest_ = *guest::start(definition_, driver_);
    net_ = *netbuf::NetBuffer::start({}, {}, definition_.name, /*holding=*/false);
    arbiter_ = *arbiter::open_file_arbiter(directory_);
  }
  void TearDown() override {
    protection_.reset();
    session_.reset();
    net_.reset();
    (void)guest_->destroy();
    std::filesystem::remove_all(directory_);
  }

  /// Protects the guest with node b, whose listener hands over to a session with these keys.
  void protect(std::shared_ptr<ckpt::TlsContext> near, std::shared_ptr<ckpt::TlsContext> far) {
    const Listener listener;
    primary::Options ours;
    ours.node = "a";
    ours.peer = "b";
    ours.peer_address = listener.address;
    ours.heartbeat_lost = 100;
    ours.tls = std::move(near);
    auto protection = primary::Protection::start(*guest_, definition_, *net_, *arbiter_, ours, {});
    ASSERT_TRUE(protection.ok()) << protection.status().message();
    protection_ = *std::move(protection);
    pollfd waiting{listener.socket.get(), POLLIN, 0};
    ASSERT_EQ(::poll(&waiting, 1, 10000), 1);
    backup::Options theirs;
    theirs.node = "b";
    theirs.heartbeat_lost = 100;
    theirs.driver = driver_;
    theirs.files_dir = directory_ + "/files";
    theirs.tls = std::move(far);
    auto session = backup::Session::start(listener.accept(), *arbiter_, theirs, {});
    ASSERT_TRUE(session.ok()) << session.status().message();
    session_ = *std::move(session);
  }
  void expect_refused(const std::string& near_says, const std::string& far_says) {
    ASSERT_TRUE(eventually([&] { return protection_->snapshot().state == primary::State::unprotected; }));
    ASSERT_TRUE(eventually([&] { return session_->snapshot().state != backup::State::handshake; }));
    EXPECT_THAT(protection_->snapshot().end.message(), HasSubstr(near_says));
    EXPECT_THAT(session_->snapshot().end.message(), HasSubstr(far_says));
    EXPECT_EQ(protection_->snapshot().acked, 0u);
  }

  ckpt::TestKeys keys_;
  std::string directory_;
  guest::Definition definition_;
  guest::DriverOptions driver_;
  std::unique_ptr<guest::Guest> guest_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  std::unique_ptr<arbiter::Arbiter> arbiter_;
  std::unique_ptr<backup::Session> session_;
  std::unique_ptr<primary::Protection> protection_;
};

TEST_F(PairTls, GoodKeysProtect) {
  ASSERT_NO_FATAL_FAILURE(protect(keys_.node("a"), keys_.node("b")));
  EXPECT_TRUE(eventually([&] { return protection_->snapshot().acked > 3; }))
      << protection_->snapshot().end.message();
}

TEST_F(PairTls, ABackupThatIsNotThePeerIsRefused) {
  ASSERT_NO_FATAL_FAILURE(protect(keys_.node("a"), keys_.node("c")));
  expect_refused("is not that of node 'b'", "not that of the node that it wants to speak to");
}

TEST_F(PairTls, ABackupOfAnotherAuthorityIsRefused) {
  const ckpt::TestKeys other;
  ASSERT_NO_FATAL_FAILURE(protect(keys_.node("a"), other.node("b")));
  expect_refused("one authority", "one authority");
}

TEST_F(PairTls, APrimaryThatIsNotWhoItSaysIsRefused) {
  ASSERT_NO_FATAL_FAILURE(protect(keys_.node("d"), keys_.node("b")));
  expect_refused("refused: node 'd', by its certificate, says that it is 'a'", "node 'd'");
}

TEST_F(PairTls, OneSideWithoutTlsIsRefused) {
  ASSERT_NO_FATAL_FAILURE(protect(nullptr, keys_.node("b")));
  expect_refused("wants TLS", "does not speak TLS");
}

TEST_F(PairTls, TheOtherSideWithoutTlsIsRefused) {
  ASSERT_NO_FATAL_FAILURE(protect(keys_.node("a"), nullptr));
  expect_refused("insecure = true", "wants TLS");
}

}  // namespace
}  // namespace remusd
