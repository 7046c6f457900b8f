// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ckpt/certificate.h"
#include "tests/ckpt_tls_keys.h"

namespace remusd::ckpt {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(CertificateTest, AnAuthorityAndANodeSayWhoTheyAre) {
  const Validity validity{1'700'000'000, 1'800'000'000};
  const auto authority = make_authority(validity);
  ASSERT_TRUE(authority.ok()) << authority.status().message();
  const auto root = certificate_facts(authority->certificate, "ca.crt");
  ASSERT_TRUE(root.ok());
  EXPECT_TRUE(root->authority);
  EXPECT_EQ(root->node, "") << "an authority is no node";
  EXPECT_THAT(root->subject, MatchesRegex("CN=remusd CA [0-9a-f]{8}"));
  EXPECT_EQ(root->issuer, root->subject);

  const auto pair = issue_certificate(*authority, "node-1.example", validity);
  ASSERT_TRUE(pair.ok()) << pair.status().message();
  const auto facts = certificate_facts(pair->certificate, "node.crt");
  ASSERT_TRUE(facts.ok());
  EXPECT_FALSE(facts->authority);
  EXPECT_EQ(facts->node, "node-1.example");
  EXPECT_EQ(facts->subject, "CN=node-1.example");
  EXPECT_EQ(facts->issuer, root->subject);
  EXPECT_EQ(facts->validity.not_before, validity.not_before);
  EXPECT_EQ(facts->validity.not_after, validity.not_after);
  EXPECT_THAT(facts->sha256, MatchesRegex("([0-9A-F]{2}:){31}[0-9A-F]{2}"));
  EXPECT_THAT(pair->key, HasSubstr("BEGIN PRIVATE KEY"));
}

TEST(CertificateTest, TwoAuthoritiesAndTwoKeysAreNeverTheSame) {
  const auto one = make_authority(valid_now()), other = make_authority(valid_now());
  EXPECT_NE(certificate_facts(one->certificate, "")->subject,
            certificate_facts(other->certificate, "")->subject);
  EXPECT_NE(issue_certificate(*one, "a", valid_now())->key, issue_certificate(*one, "a", valid_now())->key);
}

TEST(CertificateTest, AKeyOfAnotherAuthorityDoesNotSign) {
  const auto one = make_authority(valid_now()), other = make_authority(valid_now());
  EXPECT_EQ(issue_certificate({one->certificate, other->key}, "a", valid_now()).status().code(),
            Code::invalid);
  EXPECT_EQ(issue_certificate({one->certificate, "no key"}, "a", valid_now()).status().code(), Code::invalid);
}

TEST(CertificateTest, WhatIsNoCertificateIsToldByItsName) {
  const auto facts = certificate_facts("hello", "/x/ca.crt");
  EXPECT_EQ(facts.status().code(), Code::invalid);
  EXPECT_THAT(facts.status().message(), HasSubstr("/x/ca.crt"));
}

TEST(CertificateTest, TimesAreWrittenInUtc) {
  EXPECT_EQ(format_utc(1'700'000'000), "2023-11-14T22:13:20Z");
}

}  // namespace
}  // namespace remusd::ckpt
