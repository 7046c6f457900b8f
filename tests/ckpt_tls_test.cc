// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Who is refused, and that both sides are told why. FAULTS.md 43, 44, 45.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <poll.h>
#include <sys/socket.h>

#include <functional>
#include <thread>

#include "ckpt/link.h"
#include "ckpt/openssl.h"
#include "ckpt/tls.h"
#include "tests/ckpt_tls_keys.h"
#include "tests/loopback.h"
#include "tests/patience.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

/// Waits until the link is closed; a HELLO is sent as soon as there is room. *frames: those that came.
Status outcome(Link& link, int* frames = nullptr) {
  const Time deadline = Clock::now() + kPatience;
  bool said = false;
  while (Clock::now() < deadline) {
    if (!said && link.send_space() > 0) said = link.append(FrameType::hello, 0, {}).ok();
    const Status status = link.wait(deadline, [&](const FrameView&) {
      if (frames != nullptr) ++*frames;
      return Status();
    });
    if (!status.ok()) return status;
  }
  return {Code::timed_out, "the test ran out of patience"};
}

std::unique_ptr<Link> adopt(ScopedFd socket, Result<std::unique_ptr<TlsSession>> session) {
  EXPECT_TRUE(session.ok()) << session.status().message();
  return *Link::adopt(std::move(socket), {}, *std::move(session));
}

/// Both ends of a connection that does not come about.
struct Meeting {
  Status near, far;
  int frames = 0;  // that the far side was given
};
Meeting meet(std::unique_ptr<Link> near, std::unique_ptr<Link> far) {
  Meeting meeting;
  std::thread other([&] {
    meeting.near = outcome(*near);
    near.reset();
  });
  meeting.far = outcome(*far, &meeting.frames);
  far.reset();
  other.join();
  return meeting;
}

/// A client of its own making, over a socket that blocks. What it was told at the end.
struct Stranger {
  int version = TLS1_3_VERSION;
  const KeyPair* pair = nullptr;  // none: no certificate

  std::string call(ScopedFd socket) const {
    const OpensslOwned<SSL_CTX> context(SSL_CTX_new(TLS_client_method()));
    SSL_CTX_set_max_proto_version(context.get(), version);
    if (pair != nullptr) {
      const OpensslOwned<X509> certificate(
          PEM_read_bio_X509(reader_of(pair->certificate).get(), nullptr, nullptr, nullptr));
      const OpensslOwned<EVP_PKEY> key(
          PEM_read_bio_PrivateKey(reader_of(pair->key).get(), nullptr, nullptr, nullptr));
      EXPECT_EQ(SSL_CTX_use_certificate(context.get(), certificate.get()), 1);
      EXPECT_EQ(SSL_CTX_use_PrivateKey(context.get(), key.get()), 1);
    }
    const OpensslOwned<SSL> ssl(SSL_new(context.get()));
    SSL_set_fd(ssl.get(), socket.get());
    char byte;
    if (SSL_connect(ssl.get()) == 1 && SSL_read(ssl.get(), &byte, 1) == 1) return "was spoken to";
    return take_openssl_error();
  }
};

class TlsTest : public ::testing::Test {
 protected:
  /// What the accepting side says of a stranger, and what the stranger was told.
  Meeting meet_stranger(const Stranger& stranger) {
    auto [a, b] = unix_pair();
    auto far = adopt(std::move(b), b_->accept());
    Meeting meeting;
    std::string told;
    std::thread other([&, &a = a] { told = stranger.call(std::move(a)); });
    meeting.far = outcome(*far, &meeting.frames);
    far.reset();
    other.join();
    meeting.near = {Code::denied, told};
    return meeting;
  }

  TestKeys keys_;
  std::shared_ptr<TlsContext> a_ = keys_.node("a"), b_ = keys_.node("b");
};

TEST_F(TlsTest, AStrangerWithoutTlsIsRefusedAndTold) {
  auto [a, b] = unix_pair();
  const Meeting meeting = meet(*Link::adopt(std::move(a), {}), adopt(std::move(b), b_->accept()));
  EXPECT_EQ(meeting.far.code(), Code::denied);
  EXPECT_THAT(meeting.far.message(), HasSubstr("does not speak TLS"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("the peer wants TLS"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, ABackupWithoutTlsIsRefusedAndTold) {
  auto [a, b] = unix_pair();
  const Meeting meeting = meet(adopt(std::move(a), a_->connect("b")), *Link::adopt(std::move(b), {}));
  EXPECT_FALSE(meeting.near.ok());
  EXPECT_THAT(meeting.near.message(), HasSubstr("insecure = true"));
  EXPECT_THAT(meeting.far.message(), HasSubstr("the peer wants TLS"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, ABackupOfAnotherAuthorityIsRefusedAndTold) {
  const TestKeys other;
  auto [a, b] = unix_pair();
  const Meeting meeting =
      meet(adopt(std::move(a), a_->connect("b")), adopt(std::move(b), other.node("b")->accept()));
  EXPECT_EQ(meeting.near.code(), Code::denied);
  EXPECT_THAT(meeting.near.message(), HasSubstr("the peer is refused: its certificate (node 'b'"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("one authority"));
  EXPECT_THAT(meeting.far.message(), HasSubstr("the peer refused us"));
  EXPECT_THAT(meeting.far.message(), HasSubstr("one authority"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, APrimaryOfAnotherAuthorityIsRefusedAndTold) {
  const TestKeys other;
  const TlsFiles files = other.issue("a");
  TestKeys::write(files.ca, other.authority().certificate + keys_.authority().certificate, 0644);
  auto [a, b] = unix_pair();
  const Meeting meeting = meet(adopt(std::move(a), (*TlsContext::load(files, "a"))->connect("b")),
                               adopt(std::move(b), b_->accept()));
  EXPECT_EQ(meeting.far.code(), Code::denied);
  EXPECT_THAT(meeting.far.message(), HasSubstr("the peer is refused: its certificate (node 'a'"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("the peer refused us"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("one authority"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, ABackupThatIsAnotherNodeIsRefusedAndTold) {
  auto [a, b] = unix_pair();
  const Meeting meeting =
      meet(adopt(std::move(a), a_->connect("b")), adopt(std::move(b), keys_.node("c")->accept()));
  EXPECT_EQ(meeting.near.code(), Code::denied);
  EXPECT_THAT(meeting.near.message(), HasSubstr("node 'c'"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("is not that of node 'b'"));
  EXPECT_THAT(meeting.far.message(), HasSubstr("not that of the node that it wants to speak to"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, AnExpiredCertificateIsRefusedAndTold) {
  const int64_t now = std::time(nullptr);
  const KeyPair expired = *issue_certificate(keys_.authority(), "a", {now - 2 * kDay, now - kDay});
  const Meeting meeting = meet_stranger({.pair = &expired});
  EXPECT_EQ(meeting.far.code(), Code::denied);
  EXPECT_THAT(meeting.far.message(), HasSubstr("node 'a'"));
  EXPECT_THAT(meeting.far.message(), HasSubstr("expired"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("certificate expired"));
  EXPECT_EQ(meeting.frames, 0);

  const KeyPair early = *issue_certificate(keys_.authority(), "a", {now + kDay, now + 2 * kDay});
  EXPECT_THAT(meet_stranger({.pair = &early}).far.message(), HasSubstr("clocks"));
}

TEST_F(TlsTest, ACertificateThatNamesNoNodeIsRefused) {
  // The authority's own: good, but nobody's.
  const Meeting meeting = meet_stranger({.pair = &keys_.authority()});
  EXPECT_EQ(meeting.far.code(), Code::denied);
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, NoCertificateIsRefusedAndTold) {
  const Meeting meeting = meet_stranger({});
  EXPECT_EQ(meeting.far.code(), Code::denied);
  EXPECT_THAT(meeting.far.message(), HasSubstr("has no certificate"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("certificate required"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, OlderTlsIsRefusedAndTold) {
  const KeyPair pair = *issue_certificate(keys_.authority(), "a", valid_now());
  const Meeting meeting = meet_stranger({.version = TLS1_2_VERSION, .pair = &pair});
  EXPECT_EQ(meeting.far.code(), Code::unsupported);
  EXPECT_THAT(meeting.far.message(), HasSubstr("TLS 1.3"));
  EXPECT_THAT(meeting.near.message(), HasSubstr("protocol version"));
  EXPECT_EQ(meeting.frames, 0);
}

TEST_F(TlsTest, AStrangerWhoSaysNothingOrTricklesIsSentAwayInTime) {
  // The beginning of a record of 512 bytes that is never whole.
  std::string bytes("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 9);
  bytes.resize(512);
  for (const bool trickles : {false, true}) {
    auto [a, b] = unix_pair();
    const Time began = Clock::now();
    auto far = adopt(std::move(b), b_->accept(100ms));
    Status status;
    for (size_t i = 0; status.ok() && Clock::now() < began + kPatience; ++i) {
      if (trickles && i < 512) {
        ASSERT_EQ(::send(a.get(), &bytes[i], 1, MSG_NOSIGNAL), 1);
      }
      status = far->wait(Clock::now() + 5ms, [](const FrameView&) { return Status(); });
    }
    EXPECT_EQ(status.code(), Code::timed_out) << status.message();
    EXPECT_GE(Clock::now() - began, 100ms);
  }
}

// Fault 45. What was heard on the wire, sent again, is nothing but noise to a new session.
TEST_F(TlsTest, TheBytesOfARecordedSessionAreRefused) {
  std::string recorded;
  {
    auto [a, a_end] = unix_pair();
    auto [b, b_end] = unix_pair();
    std::thread between([&, &a_end = a_end, &b_end = b_end] {
      pollfd ends[] = {{a_end.get(), POLLIN, 0}, {b_end.get(), POLLIN, 0}};
      while (::poll(ends, 2, 30'000) > 0) {
        for (const int side : {0, 1}) {
          if (ends[side].revents == 0) continue;
          char bytes[4096];
          const ssize_t got = ::recv(ends[side].fd, bytes, sizeof bytes, 0);
          if (got <= 0) {
            a_end.reset();
            return b_end.reset();
          }
          if (side == 0) recorded.append(bytes, static_cast<size_t>(got));
          (void)::send(ends[1 - side].fd, bytes, static_cast<size_t>(got), MSG_NOSIGNAL);
        }
      }
    });
    auto near = adopt(std::move(a), a_->connect("b")), far = adopt(std::move(b), b_->accept());
    std::thread other([&near = near] { (void)outcome(*near); });
    int frames = 0;
    const Time deadline = Clock::now() + kPatience;
    while (frames == 0 && Clock::now() < deadline) {
      ASSERT_TRUE(far->wait(deadline,
                            [&](const FrameView&) {
                              ++frames;
                              return Status();
                            })
                      .ok());
    }
    far.reset();
    other.join();
    near.reset();
    between.join();
    ASSERT_EQ(frames, 1);
  }
  auto [a, b] = unix_pair();
  auto far = adopt(std::move(b), b_->accept());
  ASSERT_EQ(::send(a.get(), recorded.data(), recorded.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(recorded.size()));
  ::shutdown(a.get(), SHUT_WR);
  int frames = 0;
  const Status status = outcome(*far, &frames);
  EXPECT_EQ(frames, 0);
  EXPECT_EQ(status.code(), Code::corrupt) << status.message();
  EXPECT_THAT(status.message(), HasSubstr("not of this session"));
}

class TlsContextTest : public ::testing::Test {
 protected:
  Status load(const TlsFiles& files, const std::string& node = "a") {
    return TlsContext::load(files, node).status();
  }
  TestKeys keys_;
};

TEST_F(TlsContextTest, OurOwnFilesAreJudgedBeforeAnythingDependsOnThem) {
  EXPECT_TRUE(load(keys_.issue("a")).ok());

  TlsFiles files = keys_.issue("a");
  for (const mode_t mode : {0640, 0604}) {
    ASSERT_EQ(::chmod(files.key.c_str(), mode), 0);
    EXPECT_EQ(load(files).code(), Code::denied);
    EXPECT_THAT(load(files).message(), HasSubstr(files.key));
  }
  EXPECT_THAT(load(keys_.issue("b")).message(), HasSubstr("names node 'b'"));

  const int64_t now = std::time(nullptr);
  const Status expired = load(keys_.issue("a", {now - 2 * kDay, now - kDay}));
  EXPECT_EQ(expired.code(), Code::denied);
  EXPECT_THAT(expired.message(), HasSubstr("expired at " + format_utc(now - kDay)));
  EXPECT_THAT(expired.message(), HasSubstr("remusd keys issue a"));
  EXPECT_THAT(load(keys_.issue("a", {now + kDay, now + 2 * kDay})).message(), HasSubstr("clock"));

  const KeyPair other = *make_authority(valid_now());
  EXPECT_THAT(load(keys_.issue("a", valid_now(), &other)).message(), HasSubstr("not one of the authority"));

  files = keys_.issue("a");
  TestKeys::write(files.key, issue_certificate(other, "a", valid_now())->key, 0600);
  EXPECT_THAT(load(files).message(), HasSubstr("is not that of the certificate"));
  TestKeys::write(files.key, "no key", 0600);
  EXPECT_EQ(load(files).code(), Code::invalid);
  files = keys_.issue("a");
  TestKeys::write(files.ca, "no certificate", 0644);
  EXPECT_EQ(load(files).code(), Code::invalid);
  TestKeys::write(files.ca, std::string(1u << 20, 'x'), 0644);
  EXPECT_EQ(load(files).code(), Code::invalid);
  files.ca = keys_.directory() + "/none";
  EXPECT_EQ(load(files).code(), Code::not_found);
}

TEST_F(TlsContextTest, AFailedReloadKeepsWhatWasThere) {
  const TlsFiles files = keys_.issue("a");
  const auto context = *TlsContext::load(files, "a");
  const std::string before = context->own().sha256;
  keys_.issue("a");
  ASSERT_TRUE(context->reload().ok());
  const std::string after = context->own().sha256;
  EXPECT_NE(after, before);
  TestKeys::write(files.cert, "torn", 0644);
  EXPECT_FALSE(context->reload().ok());
  EXPECT_EQ(context->own().sha256, after);
  EXPECT_TRUE(context->connect("b").ok());
}

}  // namespace
}  // namespace remusd::ckpt
