// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/etcd_tls.h"

#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <sys/stat.h>

namespace remusd::arbiter {

namespace ssl = boost::asio::ssl;

Result<std::unique_ptr<EtcdTls>> EtcdTls::open(const EtcdOptions& options) {
  std::unique_ptr<EtcdTls> tls(new EtcdTls(options));
  tls->loaded_ = tls->stamps();
  REMUSD_ASSIGN(tls->context_, tls->load());
  return tls;
}

EtcdTls::Stamps EtcdTls::stamps() const {
  Stamps found;
  size_t index = 0;
  for (const std::string* path : {&options_.ca, &options_.cert, &options_.key}) {
    struct stat info {};
    if (!path->empty() && ::stat(path->c_str(), &info) == 0) {
      found[index] = {info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
    }
    ++index;
  }
  return found;
}

Result<EtcdTls::Context> EtcdTls::load() const {
  boost::system::error_code error;
  const auto context = std::make_shared<ssl::context>(ssl::context::tls_client);
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  const auto refused = [&](const char* what, const std::string& path) {
    return Status(Code::invalid, std::string("etcd: ") + what + " " + path + ": " + error.message());
  };
  context->set_verify_mode(ssl::verify_peer, error);
  if (options_.ca.empty()) {
    context->set_default_verify_paths(error);
  } else if (context->load_verify_file(options_.ca, error); error) {
    return refused("certificate authority", options_.ca);
  }
  if (!options_.cert.empty()) {
    // A key under a pass phrase is refused: OpenSSL itself would ask for it on the terminal.
    context->set_password_callback([](size_t, ssl::context::password_purpose) { return std::string(); },
                                   error);
    if (context->use_certificate_chain_file(options_.cert, error); error) {
      return refused("certificate", options_.cert);
    }
    if (context->use_private_key_file(options_.key, ssl::context::pem, error); error) {
      return refused("private key", options_.key);
    }
  }
  return context;
}

EtcdTls::Context EtcdTls::context() {
  const std::lock_guard lock(mutex_);
  if (const Stamps now = stamps(); now != loaded_) {
    loaded_ = now;
    if (auto fresh = load(); fresh.ok()) context_ = *fresh;
  }
  return context_;
}

std::string describe_tls_error(const boost::system::error_code& error, long verify_result) {
  std::string text = "TLS: " + error.message();
  if (verify_result != X509_V_OK) {
    text += std::string(": ") + X509_verify_cert_error_string(verify_result);
  }
  return text;
}

}  // namespace remusd::arbiter
