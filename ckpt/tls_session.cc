// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// TlsSession: OpenSSL's records over a BIO that reads from where the kernel received and writes to where the
// kernel sends from. Nothing here waits.
#include "ckpt/tls_session.h"

#include <openssl/x509v3.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace remusd::ckpt {
namespace {

/// RFC 8446, 5.5 allows 2^24.5 full records under one AES-GCM key; long sessions send more.
constexpr uint64_t kRecordsPerKey = 1u << 22;

const char* const kPlainHint =
    "TLS: the peer does not speak TLS; remusd on both nodes needs its keys, or insecure = true in [tls]";

/// A fatal alert, protocol_version, as it lies on the wire (RFC 8446, 5.1 and 6.2).
constexpr std::array<unsigned char, 7> kWantsTls{0x15, 3, 3, 0, 2, 2, 70};

TlsSession::State& state_of(BIO* bio) {
  return *static_cast<TlsSession::State*>(BIO_get_data(bio));
}

int read_input(BIO* bio, char* into, size_t size, size_t* got) {
  TlsSession::State& state = state_of(bio);
  BIO_clear_retry_flags(bio);
  *got = std::min(size, state.input.size());
  if (*got == 0) {
    BIO_set_retry_read(bio);
    return 0;
  }
  std::memcpy(into, state.input.data(), *got);
  state.input = state.input.subspan(*got);
  return 1;
}

int write_output(BIO* bio, const char* from, size_t size, size_t* written) {
  TlsSession::State& state = state_of(bio);
  BIO_clear_retry_flags(bio);
  *written = 0;
  if (!state.output || !state.output(std::as_bytes(std::span(from, size)))) return 0;
  *written = size;
  return 1;
}

long control(BIO*, int command, long, void*) {
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

const BIO_METHOD* link_method() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "remusd link");
    REMUSD_ASSERT(made != nullptr && BIO_meth_set_read_ex(made, read_input) == 1 &&
                      BIO_meth_set_write_ex(made, write_output) == 1 && BIO_meth_set_ctrl(made, control) == 1,
                  "only memory is needed");
    return made;
  }();
  return method;
}

int verify(int good, X509_STORE_CTX* checking) {
  const auto* ssl =
      static_cast<SSL*>(X509_STORE_CTX_get_ex_data(checking, SSL_get_ex_data_X509_STORE_CTX_idx()));
  return static_cast<TlsSession::State*>(SSL_get_app_data(ssl))->judge(good == 1, checking) ? 1 : 0;
}

std::string describe(X509* certificate) {
  if (certificate == nullptr) return "its certificate";
  const std::string node = node_of(*certificate);
  char issuer[256] = "";
  X509_NAME_oneline(X509_get_issuer_name(certificate), issuer, sizeof issuer);
  return "its certificate (" + (node.empty() ? std::string("of no node") : "node '" + node + "'") +
         ", issuer " + issuer + ")";
}

/// RFC 8446, 6.2: what the peer says of us.
std::string refused_by_peer(int alert) {
  switch (alert) {
    case SSL_AD_CERTIFICATE_EXPIRED:
      return "our certificate has expired or is not valid yet: see 'remusd keys show', issue a new one";
    case SSL_AD_UNKNOWN_CA:
      return "our certificate is not one of the authority that it trusts: both nodes need certificates of "
             "one "
             "authority";
    case SSL_AD_BAD_CERTIFICATE:
      return "our certificate is not that of the node that it wants to speak to at this address: compare "
             "'remusd keys show' with its [peer]";
    case SSL_AD_CERTIFICATE_REQUIRED:
      return "it was shown no certificate";
    case SSL_AD_PROTOCOL_VERSION:
      return "it does not speak TLS 1.3";
    default:
      return std::string(SSL_alert_desc_string_long(alert));
  }
}

}  // namespace

Status TlsSession::State::open(SSL_CTX* context, const std::string& peer_node, bool connecting) {
  ERR_clear_error();
  connects = connecting;
  expected = peer_node;
  records_per_key = kRecordsPerKey;
  ssl.reset(SSL_new(context));
  BIO* bio = BIO_new(link_method());
  if (ssl == nullptr || bio == nullptr) {
    BIO_free(bio);
    return openssl_failed("TLS: begin a session", Code::exhausted);
  }
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl.get(), bio, bio);
  SSL_set_app_data(ssl.get(), this);
  SSL_set_verify(ssl.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify);
  if (connects) {
    SSL_set_connect_state(ssl.get());
  } else {
    SSL_set_accept_state(ssl.get());
  }
  return {};
}

bool TlsSession::State::judge(bool good, X509_STORE_CTX* checking) {
  X509* certificate =
      X509_STORE_CTX_get0_cert(checking);  // the peer's own, wherever in the chain the fault is
  if (!good) {
    const int error = X509_STORE_CTX_get_error(checking);
    std::string remedy;
    switch (error) {
      case X509_V_ERR_CERT_HAS_EXPIRED:
        remedy = ": issue it a new one with 'remusd keys issue'";
        break;
      case X509_V_ERR_CERT_NOT_YET_VALID:
        remedy = ": are the clocks right?";
        break;
      default:
        remedy = ": both nodes need certificates of one authority";
        break;
    }
    refusal = {Code::denied, "TLS: the peer is refused: " + describe(certificate) + ": " +
                                 X509_verify_cert_error_string(error) + remedy};
    return false;
  }
  if (X509_STORE_CTX_get_error_depth(checking) > 0) return true;
  const std::string node = certificate == nullptr ? "" : node_of(*certificate);
  if (!node.empty() && (!connects || node == expected)) return true;
  X509_STORE_CTX_set_error(checking, X509_V_ERR_HOSTNAME_MISMATCH);
  refusal = {Code::denied,
             "TLS: the peer is refused: " + describe(certificate) +
                 (connects ? " is not that of node '" + expected + "': is the address of [peer." + expected +
                                 "] right, and the certificate on that host its own?"
                           : " names no node; issue one with 'remusd keys issue'")};
  return false;
}

Status TlsSession::State::failure() {
  const unsigned long error = ERR_peek_error();
  const int reason = ERR_GET_REASON(error);
  if (!refusal.ok()) {
    ERR_clear_error();
    return refusal;
  }
  if (ERR_GET_LIB(error) != ERR_LIB_SSL) return openssl_failed("TLS", Code::corrupt);
  if (reason > SSL_AD_REASON_OFFSET) {
    ERR_clear_error();
    return {Code::denied, "TLS: the peer refused us: " + refused_by_peer(reason - SSL_AD_REASON_OFFSET)};
  }
  switch (reason) {
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_BAD_RECORD_TYPE:
      ERR_clear_error();
      if (established) return {Code::denied, "TLS: bytes came that are no record"};
      // OpenSSL says nothing to whom it takes for no TLS at all; remusd without TLS knows an alert when it
      // sees one.
      if (output) (void)output(std::as_bytes(std::span(kWantsTls)));
      return {Code::denied, kPlainHint};
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_VERSION_TOO_LOW:
    case SSL_R_NO_PROTOCOLS_AVAILABLE:
      ERR_clear_error();
      return {Code::unsupported, "TLS: the peer is refused: it speaks no TLS 1.3, nothing older is taken"};
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      ERR_clear_error();
      return {Code::denied,
              "TLS: the peer is refused: it has no certificate; issue it one with 'remusd keys issue'"};
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
    case SSL_R_DIGEST_CHECK_FAILED:
    case SSL_R_BAD_SIGNATURE:
      ERR_clear_error();
      return {Code::corrupt,
              "TLS: bytes came that are not of this session: changed on the way, or recorded "
              "from another one"};
    default:
      return openssl_failed("TLS", Code::corrupt);
  }
}

Status TlsSession::State::shake_hands(bool* done) {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl.get());
  *done = result == 1;
  if (*done) {
    const X509* certificate = SSL_get0_peer_certificate(ssl.get());
    REMUSD_ASSERT(certificate != nullptr && SSL_version(ssl.get()) == TLS1_3_VERSION,
                  "no handshake is done without them");
    peer = node_of(*certificate);
    established = true;
    return {};
  }
  return SSL_get_error(ssl.get(), result) == SSL_ERROR_WANT_READ ? Status() : failure();
}

Status TlsSession::State::write_records(std::span<const std::byte> plain) {
  ERR_clear_error();
  if (records >= records_per_key) {
    if (SSL_key_update(ssl.get(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1) return failure();
    records = 0;
  }
  records += (plain.size() + kTlsRecordBytes - 1) / kTlsRecordBytes;
  size_t written = 0;
  if (SSL_write_ex(ssl.get(), plain.data(), plain.size(), &written) == 1) return {};
  return failure();
}

TlsSession::TlsSession(std::unique_ptr<State> state) : state_(std::move(state)) {}
TlsSession::~TlsSession() {
  ERR_clear_error();  // what OpenSSL left for this thread
}

void TlsSession::set_output(Output output) {
  state_->output = std::move(output);
}
bool TlsSession::established() const {
  return state_->established;
}
const std::string& TlsSession::peer_node() const {
  return state_->peer;
}
Time TlsSession::deadline() const {
  return state_->deadline;
}
size_t TlsSession::pending() const {
  return state_->kept_bytes;
}
void TlsSession::set_records_per_key(uint64_t records) {
  state_->records_per_key = records;
}

Status TlsSession::receive(std::span<const std::byte>* cipher, std::span<std::byte> plain, size_t* got,
                           bool* ended) {
  State& state = *state_;
  state.input = *cipher;
  *got = 0;
  Status status;
  bool ready = state.established;
  if (!ready) status = state.shake_hands(&ready);
  while (ready && status.ok() && *got < plain.size()) {
    ERR_clear_error();
    size_t read = 0;
    const int result = SSL_read_ex(state.ssl.get(), plain.data() + *got, plain.size() - *got, &read);
    *got += read;
    if (result == 1) continue;
    const int error = SSL_get_error(state.ssl.get(), result);
    if (error == SSL_ERROR_WANT_READ) break;
    if (error == SSL_ERROR_ZERO_RETURN) {
      *ended = true;
      break;
    }
    status = state.failure();
  }
  *cipher = status.ok() ? state.input : std::span<const std::byte>();
  state.input = {};
  return status;
}

Status TlsSession::write(std::span<const std::byte> plain) {
  State& state = *state_;
  REMUSD_ASSERT(state.established, "data is sent to a peer that is known only");
  if (state.kept_bytes > 0 || plain.size() < kTlsRecordBytes) {
    const size_t first = std::min(plain.size(), kTlsRecordBytes - state.kept_bytes);
    if (first > 0) std::memcpy(state.kept.data() + state.kept_bytes, plain.data(), first);
    state.kept_bytes += first;
    plain = plain.subspan(first);
    if (state.kept_bytes == kTlsRecordBytes) REMUSD_TRY(flush());
  }
  const size_t whole = plain.size() - plain.size() % kTlsRecordBytes;
  if (whole > 0) REMUSD_TRY(state.write_records(plain.first(whole)));
  plain = plain.subspan(whole);
  if (!plain.empty()) {
    std::memcpy(state.kept.data(), plain.data(), plain.size());
    state.kept_bytes = plain.size();
  }
  return {};
}

Status TlsSession::flush() {
  State& state = *state_;
  if (state.kept_bytes == 0) return {};
  return state.write_records({state.kept.data(), std::exchange(state.kept_bytes, 0)});
}

}  // namespace remusd::ckpt
