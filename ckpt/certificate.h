// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Certificates as this house uses them: one authority, and one certificate for each node, which names the
// node by its common name and by a DNS name that is the same. All keys are ECDSA on P-256, everything is PEM
// text.
#pragma once

#include <cstdint>
#include <string>

#include "ckpt/status.h"

namespace remusd::ckpt {

/// In seconds of Unix time, both ends included.
struct Validity {
  int64_t not_before = 0, not_after = 0;
};

struct CertificateFacts {
  std::string subject, issuer;  // as RFC 2253 writes them
  std::string node;             // empty: it names none
  std::string sha256;           // fingerprint: hex digits in pairs, with colons
  Validity validity;
  bool authority = false;
};
/// Of the first certificate in `pem`. `what` names it in errors.
Result<CertificateFacts> certificate_facts(const std::string& pem, const std::string& what);

struct KeyPair {
  std::string certificate, key;
};
/// A new authority. Each has a name of its own, so that two are told apart by their names already.
Result<KeyPair> make_authority(const Validity& validity);
/// A new key for `node` and its certificate, for both roles of TLS. REQUIRES: `node` is a well-formed name.
/// `invalid` when the authority's key is not that of its certificate.
Result<KeyPair> issue_certificate(const KeyPair& authority, const std::string& node,
                                  const Validity& validity);

/// Reads a file of PEM text. `what` names it in errors. `denied` for a `secret` one that its group or others
/// may read.
Result<std::string> read_pem_file(const std::string& path, const std::string& what, bool secret);

/// "2026-01-31T12:00:00Z".
std::string format_utc(int64_t seconds);

}  // namespace remusd::ckpt
