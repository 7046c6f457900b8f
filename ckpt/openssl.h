// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the sources that use OpenSSL share; included by them only.
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

#include "ckpt/status.h"

namespace remusd::ckpt {

struct OpensslFree {
  void operator()(BIO* object) const { BIO_free_all(object); }
  void operator()(EVP_PKEY* object) const { EVP_PKEY_free(object); }
  void operator()(SSL* object) const { SSL_free(object); }
  void operator()(SSL_CTX* object) const { SSL_CTX_free(object); }
  void operator()(X509* object) const { X509_free(object); }
  void operator()(X509_STORE_CTX* object) const { X509_STORE_CTX_free(object); }
};
template <typename T>
using OpensslOwned = std::unique_ptr<T, OpensslFree>;

/// The first error in this thread's queue, in OpenSSL's words; empties the queue.
inline std::string take_openssl_error() {
  const unsigned long error = ERR_get_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(error);
  return reason != nullptr ? reason : "error " + std::to_string(error);
}

inline Status openssl_failed(const std::string& what, Code code = Code::io) {
  return {code, what + ": " + take_openssl_error()};
}

/// A view of `pem` to read from.
inline OpensslOwned<BIO> reader_of(const std::string& pem) {
  return OpensslOwned<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

/// The node that a certificate names: its common name, when it is also one of its DNS names. Else empty.
std::string node_of(const X509& certificate);

}  // namespace remusd::ckpt
