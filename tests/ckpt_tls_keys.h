// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Authorities and nodes' keys for tests, in a directory of their own.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "ckpt/certificate.h"
#include "ckpt/tls.h"

namespace remusd::ckpt {

constexpr int64_t kDay = 24 * 3600;

/// Valid since yesterday, for a month.
inline Validity valid_now() {
  const int64_t now = std::time(nullptr);
  return {now - kDay, now + 30 * kDay};
}

class TestKeys {
 public:
  TestKeys() {
    std::string path = (std::filesystem::temp_directory_path() / "remusd-keys-XXXXXX").string();
    EXPECT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
    authority_ = *make_authority(valid_now());
  }
  ~TestKeys() { std::filesystem::remove_all(directory_); }

  const KeyPair& authority() const { return authority_; }
  const std::string& directory() const { return directory_; }

  /// Writes what node `name` has, signed by our authority, or by `other` (ours is what it trusts all the
  /// same).
  TlsFiles issue(const std::string& name, const Validity& validity = valid_now(),
                 const KeyPair* other = nullptr, const std::string& named = "") const {
    const auto pair =
        issue_certificate(other != nullptr ? *other : authority_, named.empty() ? name : named, validity);
    EXPECT_TRUE(pair.ok()) << pair.status().message();
    const TlsFiles files{directory_ + "/ca.crt", directory_ + "/" + name + ".crt",
                         directory_ + "/" + name + ".key"};
    write(files.ca, authority_.certificate, 0644);
    write(files.cert, pair->certificate, 0644);
    write(files.key, pair->key, 0600);
    return files;
  }
  std::shared_ptr<TlsContext> node(const std::string& name) const {
    auto context = TlsContext::load(issue(name), name);
    EXPECT_TRUE(context.ok()) << context.status().message();
    return *context;
  }
  static void write(const std::string& path, const std::string& text, mode_t mode) {
    std::ofstream(path, std::ios::trunc) << text;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
  }

 private:
  std::string directory_;
  KeyPair authority_;
};

}  // namespace remusd::ckpt
