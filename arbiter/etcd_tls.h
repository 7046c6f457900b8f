// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The certificates for https to etcd. Thread-safe.
#pragma once

#include <sys/types.h>

#include <array>
#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "arbiter/arbiter.h"

namespace remusd::arbiter {

class EtcdTls {
 public:
  using Context = std::shared_ptr<boost::asio::ssl::context>;

  /// Reads the files of `options` (none of which need be given).
  static Result<std::unique_ptr<EtcdTls>> open(const EtcdOptions& options);

  /// Verifies the server against the authorities; TLS 1.2 or newer. Read again when a file was replaced, so
  /// that renewed certificates need no restart; while the new files are no good, the old ones stay in use.
  Context context();

 private:
  struct Stamp {
    ino_t inode = 0;
    off_t size = 0;
    time_t seconds = 0;
    long nanoseconds = 0;
    bool operator==(const Stamp&) const = default;
  };
  using Stamps = std::array<Stamp, 3>;

  explicit EtcdTls(EtcdOptions options) : options_(std::move(options)) {}
  Stamps stamps() const;
  Result<Context> load() const;

  const EtcdOptions options_;
  std::mutex mutex_;
  Context context_;  // guarded by mutex_
  Stamps loaded_{};  // guarded by mutex_; of the files that were read last, good or not
};

/// What OpenSSL and Asio say of a failed handshake, and of the verification where that is why.
std::string describe_tls_error(const boost::system::error_code& error, long verify_result);

}  // namespace remusd::arbiter
