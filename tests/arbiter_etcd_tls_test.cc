// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// https to a real etcd that wants certificates, all made here by the openssl command.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/arbiter_etcd_server.h"
#include "tests/arbiter_requests.h"
#include "tests/temporary_directory.h"

namespace remusd::arbiter {
namespace {

using testing::HasSubstr;

class EtcdTlsTest : public testing::Test {
 protected:
  void SetUp() override {
    REMUSD_NEEDS_ETCD();
    make_authority("ca");
    make_authority("other-ca");
    issue("server", "ca", "IP:127.0.0.1,DNS:localhost");
    issue("client", "ca", "DNS:node-a");
    issue("stranger", "other-ca", "DNS:node-a");
    cluster_ = serve("server");
  }
  std::string path(const std::string& name) const { return directory_.path() + "/" + name; }
  void openssl(const std::string& arguments) {
    const std::string command = "cd " + directory_.path() + " && openssl " + arguments + " 2>>log";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
  }
  void make_authority(const std::string& name) {
    openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=" + name +
            " -keyout " + name + ".key -out " + name + ".crt");
  }
  void issue(const std::string& name, const std::string& authority, const std::string& names) {
    openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=" + name +
            " -addext subjectAltName=" + names + " -keyout " + name + ".key -out " + name + ".csr");
    openssl("x509 -req -in " + name + ".csr -CA " + authority + ".crt -CAkey " + authority +
            ".key -CAcreateserial -days 2 -copy_extensions copy -out " + name + ".crt");
  }
  std::unique_ptr<EtcdCluster> serve(const std::string& name) {
    return std::make_unique<EtcdCluster>(
        1, std::vector<std::string>{"--cert-file=" + path(name + ".crt"), "--key-file=" + path(name + ".key"),
                                    "--client-cert-auth", "--trusted-ca-file=" + path("ca.crt")});
  }
  Result<std::unique_ptr<Arbiter>> open(const std::string& url, const std::string& authority,
                                        const std::string& client) {
    EtcdOptions options{{url}, path(authority + ".crt"), "", ""};
    if (!client.empty()) {
      options.cert = path(client + ".crt");
      options.key = path(client + ".key");
    }
    return open_etcd_arbiter(options);
  }
  /// Empty when a record could be won and read back; else why not.
  std::string trouble(Arbiter& arbiter) {
    const Record desired{++generation_, "a", "", 0, make_nonce(), ""};
    const Answer answer = arbiter.compare_and_swap("vm1", generation_ - 1, desired, soon());
    if (answer.verdict != Verdict::won) {
      EXPECT_EQ(answer.verdict, Verdict::unknown);
      --generation_;
      return answer.why.message();
    }
    const auto read = arbiter.read("vm1", soon());
    if (!read.ok()) return read.status().message();
    return *read == desired ? "" : "another record";
  }
  std::string trouble(const std::string& url, const std::string& authority, const std::string& client) {
    auto opened = open(url, authority, client);
    return opened.ok() ? trouble(**opened) : opened.status().message();
  }
  std::string localhost() const { return "https://localhost:" + std::to_string(cluster_->port(0)); }

  TemporaryDirectory directory_;
  std::unique_ptr<EtcdCluster> cluster_;
  uint64_t generation_ = 0;
};

TEST_F(EtcdTlsTest, ServerAndClientKnowEachOther) {
  EXPECT_EQ(trouble(cluster_->endpoint(0), "ca", "client"), "");
  EXPECT_EQ(trouble(localhost(), "ca", "client"), "");
}

TEST_F(EtcdTlsTest, AServerOfAnotherAuthorityIsRefused) {
  EXPECT_THAT(trouble(cluster_->endpoint(0), "other-ca", "client"), HasSubstr("TLS"));
}

TEST_F(EtcdTlsTest, TheSystemsAuthoritiesAreAskedWhenNoneIsNamed) {
  const auto arbiter = *open_etcd_arbiter({{cluster_->endpoint(0)}, "", "", ""});
  EXPECT_THAT(trouble(*arbiter), HasSubstr("TLS"));
}

TEST_F(EtcdTlsTest, AServerWithAnotherNameIsRefused) {
  for (const char* names : {"DNS:localhost", "IP:127.0.0.1", "IP:127.0.0.2,DNS:127.0.0.1"}) {
    issue("elsewhere", "ca", names);
    cluster_ = serve("elsewhere");
    const bool is_ip = std::string(names) == "IP:127.0.0.1", is_name = std::string(names) == "DNS:localhost";
    const std::string by_ip = trouble(cluster_->endpoint(0), "ca", "client");
    EXPECT_EQ(by_ip.empty(), is_ip) << names << ": " << by_ip;
    generation_ = 0;
    if (is_ip) continue;  // The record is there now.
    const std::string by_name = trouble(localhost(), "ca", "client");
    EXPECT_EQ(by_name.empty(), is_name) << names << ": " << by_name;
    generation_ = 0;
  }
}

TEST_F(EtcdTlsTest, AClientWithoutOrWithAStrangersCertificateIsUnknownNotLost) {
  EXPECT_NE(trouble(cluster_->endpoint(0), "ca", ""), "");
  EXPECT_NE(trouble(cluster_->endpoint(0), "ca", "stranger"), "");
}

TEST_F(EtcdTlsTest, PlainTextToAnHttpsServerIsUnknown) {
  const auto arbiter =
      *open_etcd_arbiter({{"http://127.0.0.1:" + std::to_string(cluster_->port(0))}, "", "", ""});
  EXPECT_NE(trouble(*arbiter), "");
}

TEST_F(EtcdTlsTest, RenewedCertificatesAreTakenWithoutARestart) {
  for (const char* kind : {".crt", ".key"}) {
    std::filesystem::copy_file(path(std::string("stranger") + kind), path(std::string("ours") + kind));
  }
  const auto arbiter = *open(cluster_->endpoint(0), "ca", "ours");
  EXPECT_NE(trouble(*arbiter), "");
  for (const char* kind : {".crt", ".key"}) {
    std::filesystem::rename(path(std::string("client") + kind), path(std::string("ours") + kind));
  }
  EXPECT_EQ(trouble(*arbiter), "");
  std::filesystem::rename(path("stranger.key"), path("ours.key"));  // Does not belong to the certificate.
  EXPECT_EQ(trouble(*arbiter), "") << "while new files are no good the old ones stay in use";
}

TEST_F(EtcdTlsTest, FilesThatCannotBeUsedAreToldWhenItIsOpened) {
  EXPECT_THAT(open(cluster_->endpoint(0), "nonexistent", "").status().message(),
              HasSubstr("nonexistent.crt"));
  std::filesystem::copy_file(path("client.crt"), path("odd.crt"));
  std::filesystem::copy_file(path("stranger.key"), path("odd.key"));
  EXPECT_THAT(open(cluster_->endpoint(0), "ca", "odd").status().message(), HasSubstr("odd.key"));
  std::filesystem::remove(path("odd.key"));
  openssl("pkey -in client.key -aes128 -passout pass:secret -out odd.key");
  EXPECT_THAT(open(cluster_->endpoint(0), "ca", "odd").status().message(), HasSubstr("odd.key"));
}

}  // namespace
}  // namespace remusd::arbiter
