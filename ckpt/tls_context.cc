// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// TlsContext: the files, and what a certificate must be.
#include <openssl/pem.h>

#include <ctime>

#include "ckpt/tls.h"
#include "ckpt/tls_session.h"

namespace remusd::ckpt {
namespace {

constexpr long kMaxPeerChainBytes = 16 << 10;
// The faster one first: with the instructions that processors have for it, both are far from the wire's
// speed.
constexpr const char* kCipherSuites =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

OpensslOwned<X509> next_certificate(BIO* from) {
  OpensslOwned<X509> certificate(PEM_read_bio_X509(from, nullptr, nullptr, nullptr));
  if (certificate == nullptr) ERR_clear_error();  // the end of the file
  return certificate;
}

Status trust(SSL_CTX* context, const std::string& pem, const std::string& path) {
  const OpensslOwned<BIO> from = reader_of(pem);
  int found = 0;
  while (const auto certificate = next_certificate(from.get())) {
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate.get()) != 1)
      return openssl_failed("TLS: trust " + path, Code::invalid);
    // Told to who connects, so that it could choose among certificates; costs nothing and helps in traces.
    if (SSL_CTX_add_client_CA(context, certificate.get()) != 1) return openssl_failed("TLS: trust " + path);
    ++found;
  }
  return found > 0 ? Status() : Status(Code::invalid, "TLS: there is no certificate in " + path);
}

Status use_own(SSL_CTX* context, const TlsFiles& files, const std::string& cert, const std::string& key) {
  const OpensslOwned<BIO> from = reader_of(cert);
  const auto own = next_certificate(from.get());
  if (own == nullptr) return {Code::invalid, "TLS: there is no certificate in " + files.cert};
  if (SSL_CTX_use_certificate(context, own.get()) != 1)
    return openssl_failed("TLS: use " + files.cert, Code::invalid);
  while (const auto between = next_certificate(from.get())) {
    if (SSL_CTX_add1_chain_cert(context, between.get()) != 1) return openssl_failed("TLS: use " + files.cert);
  }
  // Never asks for a passphrase: a daemon has nobody to ask.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  const OpensslOwned<EVP_PKEY> secret(
      PEM_read_bio_PrivateKey(reader_of(key).get(), nullptr, no_passphrase, nullptr));
  if (secret == nullptr) return openssl_failed("TLS: there is no usable key in " + files.key, Code::invalid);
  if (SSL_CTX_use_PrivateKey(context, secret.get()) != 1 || SSL_CTX_check_private_key(context) != 1) {
    ERR_clear_error();
    return {Code::invalid, "TLS: the key " + files.key + " is not that of the certificate " + files.cert};
  }
  return {};
}

/// What our peers would refuse us for is told here, before anything depends on it.
Status check_own(SSL_CTX* context, const TlsFiles& files, const CertificateFacts& facts,
                 const std::string& node) {
  const std::string what = "TLS: the certificate " + files.cert;
  const std::string remedy = "; issue one for it: remusd keys issue " + node;
  if (facts.node != node) {
    return {Code::invalid, what + " names " + (facts.node.empty() ? "no node" : "node '" + facts.node + "'") +
                               " (" + facts.subject + "), but this is node '" + node + "'" + remedy};
  }
  const int64_t now = std::time(nullptr);
  if (now > facts.validity.not_after) {
    return {Code::denied,
            what + " of node '" + node + "' expired at " + format_utc(facts.validity.not_after) + remedy};
  }
  if (now < facts.validity.not_before) {
    return {Code::denied, what + " of node '" + node + "' is valid from " +
                              format_utc(facts.validity.not_before) + " on: is the clock right?"};
  }
  const OpensslOwned<X509_STORE_CTX> checking(X509_STORE_CTX_new());
  STACK_OF(X509)* between = nullptr;
  SSL_CTX_get0_chain_certs(context, &between);
  if (X509_STORE_CTX_init(checking.get(), SSL_CTX_get_cert_store(context), SSL_CTX_get0_certificate(context),
                          between) != 1)
    return openssl_failed("TLS: check " + files.cert);
  if (X509_verify_cert(checking.get()) == 1) return {};
  const int error = X509_STORE_CTX_get_error(checking.get());
  ERR_clear_error();
  return {Code::invalid, what + " of node '" + node + "' (issuer " + facts.issuer +
                             ") is not one of the authority in " + files.ca + ": " +
                             X509_verify_cert_error_string(error) + remedy};
}

}  // namespace

struct TlsContext::Loaded {
  OpensslOwned<SSL_CTX> context;
  CertificateFacts own;
};

TlsContext::TlsContext(TlsFiles files, std::string node) : files_(std::move(files)), node_(std::move(node)) {}
TlsContext::~TlsContext() = default;

Result<std::shared_ptr<const TlsContext::Loaded>> TlsContext::read(const TlsFiles& files,
                                                                   const std::string& node) {
  ERR_clear_error();
  REMUSD_ASSIGN(const std::string ca, read_pem_file(files.ca, "the authority's certificate", false));
  REMUSD_ASSIGN(const std::string cert, read_pem_file(files.cert, "this node's certificate", false));
  REMUSD_ASSIGN(const std::string key, read_pem_file(files.key, "this node's key", true));
  auto loaded = std::make_shared<Loaded>();
  loaded->context.reset(SSL_CTX_new(TLS_method()));
  SSL_CTX* context = loaded->context.get();
  if (context == nullptr || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, kCipherSuites) != 1 || SSL_CTX_set_num_tickets(context, 0) != 1)
    return openssl_failed("TLS: set up");
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context,
                   SSL_MODE_NO_AUTO_CHAIN);  // the peer has the authority's certificate, or takes none
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_max_cert_list(context, kMaxPeerChainBytes);
  REMUSD_TRY(trust(context, ca, files.ca));
  REMUSD_TRY(use_own(context, files, cert, key));
  REMUSD_ASSIGN(loaded->own, certificate_facts(cert, files.cert));
  REMUSD_TRY(check_own(context, files, loaded->own, node));
  return std::shared_ptr<const Loaded>(std::move(loaded));
}

Result<std::shared_ptr<TlsContext>> TlsContext::load(const TlsFiles& files, const std::string& node) {
  std::shared_ptr<TlsContext> context(new TlsContext(files, node));
  REMUSD_TRY(context->reload());
  return context;
}

Status TlsContext::reload() {
  REMUSD_ASSIGN(auto fresh, read(files_, node_));
  const std::lock_guard lock(mutex_);
  loaded_ = std::move(fresh);
  return {};
}

std::shared_ptr<const TlsContext::Loaded> TlsContext::loaded() const {
  const std::lock_guard lock(mutex_);
  return loaded_;
}

CertificateFacts TlsContext::own() const {
  return loaded()->own;
}

Result<std::unique_ptr<TlsSession>> TlsContext::connect(const std::string& peer, Duration patience) {
  return begin(peer, /*connects=*/true, patience);
}

Result<std::unique_ptr<TlsSession>> TlsContext::accept(Duration patience) {
  return begin("", /*connects=*/false, patience);
}

Result<std::unique_ptr<TlsSession>> TlsContext::begin(const std::string& peer, bool connects,
                                                      Duration patience) {
  auto state = std::make_unique<TlsSession::State>();
  state->deadline = Clock::now() + patience;
  REMUSD_TRY(state->open(loaded()->context.get(), peer, connects));
  return std::unique_ptr<TlsSession>(new TlsSession(std::move(state)));
}

}  // namespace remusd::ckpt
