// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What TlsContext and TlsSession share; included by their sources only.
#pragma once

#include <array>
#include <string>

#include "ckpt/openssl.h"
#include "ckpt/tls.h"

namespace remusd::ckpt {

struct TlsSession::State {
  OpensslOwned<SSL> ssl;
  Output output;
  std::span<const std::byte> input;  // cipher text that OpenSSL has not yet taken, during receive()
  std::array<std::byte, kTlsRecordBytes> kept;
  size_t kept_bytes = 0;
  uint64_t records = 0, records_per_key = 0;  // since the keys were changed last
  bool connects = false, established = false;
  std::string expected, peer;  // nodes
  Status refusal;              // why the peer's certificate is refused
  Time deadline{};

  Status open(SSL_CTX* context, const std::string& peer_node, bool connecting);
  /// True when the peer's certificate, found good or bad by OpenSSL, is one that we take.
  bool judge(bool good, X509_STORE_CTX* checking);
  Status shake_hands(bool* done);
  Status write_records(std::span<const std::byte> plain);
  /// What a failed call of OpenSSL means for an operator.
  Status failure();
};

}  // namespace remusd::ckpt
