// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/peer_tls.h"

#include <ctime>

#include "control/keys.h"
#include "control/log.h"

namespace remusd::control {
namespace {

constexpr int64_t kWarnDays = 30;
constexpr Duration kWarnInterval = std::chrono::hours(24);

}  // namespace

PeerTls::PeerTls(const Config& config)
    : files_{config.tls_ca, config.tls_cert, config.tls_key},
      node_(config.node),
      insecure_(config.insecure) {}

Result<std::unique_ptr<PeerTls>> PeerTls::open(const Config& config) {
  std::unique_ptr<PeerTls> tls(new PeerTls(config));
  if (config.insecure) return tls;
  const Status status = tls->load();
  if (status.ok()) return tls;
  // Without peers keys are not needed yet; bad ones are told at once.
  if (status.code() == Code::not_found && config.listen.empty()) return tls;
  return Status(status.code(), tls->context().status().message());
}

Status PeerTls::load() {
  auto context = ckpt::TlsContext::load(files_, node_);
  const std::lock_guard lock(mutex_);
  if (context.ok()) {
    context_ = *std::move(context);
    missing_ = {};
    return {};
  }
  Status status = context.status();
  missing_ = {Code::unavailable, status.message()};
  if (status.code() == Code::not_found) {
    missing_ = {Code::unavailable, "no keys for speaking to other nodes (" + status.message() +
                                       "): make them with 'remusd keys init' " + "and 'remusd keys issue " +
                                       node_ + " --out DIR', or say insecure = true in [tls] for plain text"};
  }
  return status;
}

Result<std::shared_ptr<ckpt::TlsContext>> PeerTls::context() const {
  if (insecure_) return std::shared_ptr<ckpt::TlsContext>();
  const std::lock_guard lock(mutex_);
  if (context_ == nullptr) return missing_;
  return context_;
}

void PeerTls::begin(Metrics& metrics) {
  metrics_ = &metrics;
  if (insecure_) {
    log(LogLevel::warn, {},
        "INSECURE: traffic with other nodes is neither encrypted nor authenticated (insecure = true); "
        "whoever "
        "reaches this network reads the guests' memory and may pretend to be a node");
  }
  publish();
  watch();
}

void PeerTls::publish() {
  const auto context = this->context();
  if (metrics_ == nullptr || !context.ok()) return;
  metrics_->set_peer_tls(*context != nullptr);
  if (*context == nullptr) return;
  const ckpt::CertificateFacts own = (*context)->own();
  metrics_->set_certificate_expiry(static_cast<double>(own.validity.not_after));
  log(LogLevel::info, {},
      "TLS with other nodes: certificate of node '" + own.node + "', valid to " +
          ckpt::format_utc(own.validity.not_after) + ", SHA-256 " + own.sha256);
}

void PeerTls::reload() {
  if (insecure_) return;
  const auto context = this->context();
  const Status status = context.ok() ? (*context)->reload() : load();
  if (!status.ok()) {
    log(LogLevel::error, {},
        "SIGHUP: the keys were not read again" +
            std::string(context.ok() ? ", those from before stay in use: " : ": ") + status.message());
    return;
  }
  publish();
  next_warning_ = {};
  watch();
}

void PeerTls::watch() {
  const Time now = Clock::now();
  if (now < next_warning_) return;
  next_warning_ = now + kWarnInterval;
  const auto context = this->context();
  if (!context.ok() || *context == nullptr) return;
  const ckpt::CertificateFacts own = (*context)->own();
  const int64_t left = own.validity.not_after - std::time(nullptr);
  if (left > kWarnDays * kDaySeconds) return;
  log(LogLevel::warn, {},
      "the certificate of node '" + own.node + "' " + (left < 0 ? "expired" : "expires") + " at " +
          ckpt::format_utc(own.validity.not_after) + (left < 0 ? ": no peer speaks to us any more" : "") +
          "; issue a new one ('remusd keys issue " + own.node + "') and send SIGHUP");
}

}  // namespace remusd::control
