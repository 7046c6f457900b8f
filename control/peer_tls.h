// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// How this daemon speaks to its peers: with TLS, or in plain text because it was told so, or not at all
// because it has no keys. Keys are read at the start and on SIGHUP; connections that live are left alone.
#pragma once

#include <memory>
#include <mutex>

#include "ckpt/tls.h"
#include "control/config.h"
#include "control/metrics.h"

namespace remusd::control {

class PeerTls {
 public:
  /// Fails when the keys are no good, or are missing while peers are to be listened for.
  static Result<std::unique_ptr<PeerTls>> open(const Config& config);

  // Any thread.
  /// What a connection with a peer goes through; null for plain text. A failure says what to do.
  Result<std::shared_ptr<ckpt::TlsContext>> context() const;
  bool insecure() const { return insecure_; }

  // The loop's.
  /// Says in the log how it is, and keeps the metrics from then on.
  void begin(Metrics& metrics);
  /// Reads the keys again and says how it went; when it failed those that were there stay.
  void reload();
  /// Warns of a certificate that ends soon, once a day. Cheap.
  void watch();

 private:
  explicit PeerTls(const Config& config);
  Status load();
  void publish();

  const ckpt::TlsFiles files_;
  const std::string node_;
  const bool insecure_;
  mutable std::mutex mutex_;
  std::shared_ptr<ckpt::TlsContext> context_;  // guarded by mutex_; set once
  Status missing_;                             // guarded by mutex_; why there is none
  Metrics* metrics_ = nullptr;
  Time next_warning_{};
};

}  // namespace remusd::control
