// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/certificate.h"

#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <ctime>

#include "ckpt/openssl.h"
#include "ckpt/scoped_fd.h"

namespace remusd::ckpt {
namespace {

constexpr size_t kSerialBytes = 16;
constexpr size_t kMaxPemBytes = 64u << 10;

std::string text_of(const X509_NAME* name) {
  const OpensslOwned<BIO> out(BIO_new(BIO_s_mem()));
  X509_NAME_print_ex(out.get(), name, 0, XN_FLAG_RFC2253);
  char* data = nullptr;
  const long size = BIO_get_mem_data(out.get(), &data);
  return size > 0 ? std::string(data, static_cast<size_t>(size)) : std::string();
}

int64_t seconds_of(const ASN1_TIME* time) {
  std::tm parts{};
  return ASN1_TIME_to_tm(time, &parts) == 1 ? ::timegm(&parts) : 0;
}

std::string text_of(const ASN1_STRING* string) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(string)),
          static_cast<size_t>(ASN1_STRING_length(string))};
}

template <typename Write>
Result<std::string> to_pem(const std::string& what, Write write) {
  const OpensslOwned<BIO> out(BIO_new(BIO_s_mem()));
  if (out == nullptr || write(out.get()) != 1) return openssl_failed("write " + what);
  char* data = nullptr;
  const long size = BIO_get_mem_data(out.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

bool add_extension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  if (extension == nullptr) return false;
  const bool added = X509_add_ext(certificate, extension, -1) == 1;
  X509_EXTENSION_free(extension);
  return added;
}

bool set_serial(X509* certificate) {
  std::array<unsigned char, kSerialBytes> bytes;
  if (RAND_bytes(bytes.data(), bytes.size()) != 1) return false;
  bytes[0] = static_cast<unsigned char>((bytes[0] & 0x7f) | 0x40);  // positive, and always as long
  BIGNUM* number = BN_bin2bn(bytes.data(), bytes.size(), nullptr);
  const bool set = number != nullptr && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate));
  BN_free(number);
  return set;
}

bool set_name(X509* certificate, const std::string& common_name) {
  X509_NAME* name = X509_get_subject_name(certificate);
  return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                    reinterpret_cast<const unsigned char*>(common_name.data()),
                                    static_cast<int>(common_name.size()), -1, 0) == 1;
}

/// An unsigned certificate over a new key, with what all of ours have.
struct Draft {
  OpensslOwned<EVP_PKEY> key;
  OpensslOwned<X509> certificate;
};
Result<Draft> draft(const std::string& common_name, const Validity& validity) {
  Draft made{OpensslOwned<EVP_PKEY>(EVP_EC_gen("P-256")), OpensslOwned<X509>(X509_new())};
  X509* certificate = made.certificate.get();
  if (made.key == nullptr || certificate == nullptr) return openssl_failed("make a key");
  const bool filled = X509_set_version(certificate, X509_VERSION_3) == 1 && set_serial(certificate) &&
                      ASN1_TIME_set(X509_getm_notBefore(certificate), validity.not_before) != nullptr &&
                      ASN1_TIME_set(X509_getm_notAfter(certificate), validity.not_after) != nullptr &&
                      set_name(certificate, common_name) && X509_set_pubkey(certificate, made.key.get()) == 1;
  if (!filled) return openssl_failed("make the certificate of " + common_name);
  return made;
}

Result<KeyPair> sign(const Draft& draft, EVP_PKEY* signer) {
  if (X509_sign(draft.certificate.get(), signer, EVP_sha256()) <= 0) return openssl_failed("sign");
  KeyPair pair;
  REMUSD_ASSIGN(pair.certificate, to_pem("a certificate", [&](BIO* out) {
                  return PEM_write_bio_X509(out, draft.certificate.get());
                }));
  REMUSD_ASSIGN(pair.key, to_pem("a key", [&](BIO* out) {
                  return PEM_write_bio_PKCS8PrivateKey(out, draft.key.get(), nullptr, nullptr, 0, nullptr,
                                                       nullptr);
                }));
  return pair;
}

Result<OpensslOwned<X509>> read_certificate(const std::string& pem, const std::string& what) {
  OpensslOwned<X509> certificate(PEM_read_bio_X509(reader_of(pem).get(), nullptr, nullptr, nullptr));
  if (certificate == nullptr) return openssl_failed(what + " is no certificate in PEM form", Code::invalid);
  return certificate;
}

}  // namespace

std::string node_of(const X509& certificate) {
  const X509_NAME* subject = X509_get_subject_name(&certificate);
  const int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
  if (at < 0 || X509_NAME_get_index_by_NID(subject, NID_commonName, at) >= 0) return "";
  const std::string name = text_of(X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
  auto* others =
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(&certificate, NID_subject_alt_name, nullptr, nullptr));
  bool found = false;
  for (int i = 0; i < sk_GENERAL_NAME_num(others); ++i) {
    const GENERAL_NAME* other = sk_GENERAL_NAME_value(others, i);
    found = found || (other->type == GEN_DNS && text_of(other->d.dNSName) == name);
  }
  GENERAL_NAMES_free(others);
  return found ? name : "";
}

Result<CertificateFacts> certificate_facts(const std::string& pem, const std::string& what) {
  REMUSD_ASSIGN(const OpensslOwned<X509> certificate, read_certificate(pem, what));
  CertificateFacts facts;
  facts.subject = text_of(X509_get_subject_name(certificate.get()));
  facts.issuer = text_of(X509_get_issuer_name(certificate.get()));
  facts.node = node_of(*certificate);
  facts.validity = {seconds_of(X509_get0_notBefore(certificate.get())),
                    seconds_of(X509_get0_notAfter(certificate.get()))};
  facts.authority = X509_check_ca(certificate.get()) == 1;
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned size = 0;
  if (X509_digest(certificate.get(), EVP_sha256(), digest.data(), &size) != 1)
    return openssl_failed("fingerprint of " + what);
  for (unsigned i = 0; i < size; ++i) {
    constexpr char kDigits[] = "0123456789ABCDEF";
    if (i > 0) facts.sha256 += ':';
    facts.sha256 += kDigits[digest[i] >> 4];
    facts.sha256 += kDigits[digest[i] & 15];
  }
  return facts;
}

Result<KeyPair> make_authority(const Validity& validity) {
  std::array<unsigned char, 4> random;
  if (RAND_bytes(random.data(), random.size()) != 1) return openssl_failed("make a name");
  std::string name = "remusd CA ";
  for (const unsigned char byte : random) {
    constexpr char kDigits[] = "0123456789abcdef";
    name += kDigits[byte >> 4];
    name += kDigits[byte & 15];
  }
  REMUSD_ASSIGN(const Draft made, draft(name, validity));
  X509* certificate = made.certificate.get();
  const bool filled =
      X509_set_issuer_name(certificate, X509_get_subject_name(certificate)) == 1 &&
      add_extension(certificate, certificate, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
      add_extension(certificate, certificate, NID_key_usage, "critical,keyCertSign,cRLSign") &&
      add_extension(certificate, certificate, NID_subject_key_identifier, "hash");
  if (!filled) return openssl_failed("make the authority's certificate");
  return sign(made, made.key.get());
}

Result<KeyPair> issue_certificate(const KeyPair& authority, const std::string& node,
                                  const Validity& validity) {
  REMUSD_ASSIGN(const OpensslOwned<X509> issuer,
                read_certificate(authority.certificate, "the authority's certificate"));
  const OpensslOwned<EVP_PKEY> signer(
      PEM_read_bio_PrivateKey(reader_of(authority.key).get(), nullptr, nullptr, nullptr));
  if (signer == nullptr) return openssl_failed("the authority's key cannot be read", Code::invalid);
  if (X509_check_private_key(issuer.get(), signer.get()) != 1) {
    ERR_clear_error();
    return Status(Code::invalid, "the authority's key is not that of its certificate");
  }
  REMUSD_ASSIGN(const Draft made, draft(node, validity));
  X509* certificate = made.certificate.get();
  const bool filled = X509_set_issuer_name(certificate, X509_get_subject_name(issuer.get())) == 1 &&
                      add_extension(certificate, issuer.get(), NID_basic_constraints, "critical,CA:FALSE") &&
                      add_extension(certificate, issuer.get(), NID_key_usage, "critical,digitalSignature") &&
                      add_extension(certificate, issuer.get(), NID_ext_key_usage, "serverAuth,clientAuth") &&
                      add_extension(certificate, issuer.get(), NID_subject_alt_name, "DNS:" + node) &&
                      add_extension(certificate, issuer.get(), NID_subject_key_identifier, "hash") &&
                      add_extension(certificate, issuer.get(), NID_authority_key_identifier, "keyid:always");
  if (!filled) return openssl_failed("make the certificate of node " + node);
  return sign(made, signer.get());
}

Result<std::string> read_pem_file(const std::string& path, const std::string& what, bool secret) {
  const ScopedFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return Status::from_errno("open " + what + " " + path);
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return Status::from_errno("look at " + path);
  if (secret && (info.st_mode & 077) != 0) {
    return Status(Code::denied, "the private key " + path +
                                    " can be read by others than its owner; refused: chmod 600 it, and make "
                                    "a new one if somebody may have read it");
  }
  std::string text(kMaxPemBytes + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Status::from_errno("read " + path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kMaxPemBytes) return Status(Code::invalid, "" + path + " is too large to be " + what);
  text.resize(size);
  return text;
}

std::string format_utc(int64_t seconds) {
  const std::time_t time = seconds;
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  char text[32];
  const size_t size = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text, size};
}

}  // namespace remusd::ckpt
