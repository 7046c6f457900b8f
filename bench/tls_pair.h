// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdlib.h>
#include <sys/stat.h>

#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "ckpt/certificate.h"
#include "ckpt/tls.h"

namespace remusd::ckpt {

/// Keys for nodes a (which connects) and b, made now and gone with this. Ends the program when it cannot.
class TlsPair {
 public:
  TlsPair() {
    std::string path = (std::filesystem::temp_directory_path() / "remusd-tls-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) fail("a directory");
    const int64_t now = std::time(nullptr);
    const Validity validity{now - 3600, now + 24 * 3600};
    const auto authority = make_authority(validity);
    if (!authority.ok()) fail(authority.status().message());
    write(path + "/ca.crt", authority->certificate);
    for (const std::string node : {"a", "b"}) {
      const auto pair = issue_certificate(*authority, node, validity);
      if (!pair.ok()) fail(pair.status().message());
      write(path + "/node.crt", pair->certificate);
      write(path + "/node.key", pair->key);
      auto context = TlsContext::load({path + "/ca.crt", path + "/node.crt", path + "/node.key"}, node);
      if (!context.ok()) fail(context.status().message());
      (node == "a" ? near_ : far_) = *context;
    }
    std::filesystem::remove_all(path);
  }

  TlsContext& near() const { return *near_; }
  TlsContext& far() const { return *far_; }
  const std::shared_ptr<TlsContext>& shared_near() const { return near_; }
  const std::shared_ptr<TlsContext>& shared_far() const { return far_; }

 private:
  [[noreturn]] static void fail(const std::string& what) {
    std::fprintf(stderr, "make keys: %s\n", what.c_str());
    std::exit(1);
  }
  static void write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::trunc) << text;
    if (::chmod(path.c_str(), 0600) != 0) fail(path);
  }

  std::shared_ptr<TlsContext> near_, far_;
};

}  // namespace remusd::ckpt
