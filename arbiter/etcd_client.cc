// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/etcd_client.h"

#include <algorithm>

#include "arbiter/etcd_connection.h"

namespace remusd::arbiter {
namespace {

// How long one endpoint may keep a caller from the next. The last one gets all that is left: these bound what
// a dead or hung member costs a failover, they are no judgement on a slow network.
constexpr std::chrono::milliseconds kConnectPatience{250};
constexpr std::chrono::milliseconds kAnswerPatience{500};

Status check_options(const EtcdOptions& options, const std::vector<EtcdEndpoint>& endpoints) {
  if (endpoints.empty() || endpoints.size() > kMaxEtcdEndpoints) {
    return {Code::invalid, "etcd: from 1 to " + std::to_string(kMaxEtcdEndpoints) +
                               " endpoints are needed, not " + std::to_string(endpoints.size())};
  }
  if (options.cert.empty() != options.key.empty()) {
    return {Code::invalid, "etcd: a certificate needs its private key, and the key its certificate"};
  }
  const bool files = !options.ca.empty() || !options.cert.empty();
  for (const EtcdEndpoint& endpoint : endpoints) {
    const bool local = endpoint.host == "localhost" || (endpoint.address && endpoint.address->is_loopback());
    if (files && !endpoint.tls && !local) {
      return {Code::invalid,
              "etcd endpoint '" + endpoint.url +
                  "' would be asked in the clear although certificates are configured; use https"};
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<EtcdClient>> EtcdClient::open(const EtcdOptions& options) {
  std::vector<EtcdEndpoint> endpoints;
  for (const std::string& url : options.endpoints) {
    REMUSD_ASSIGN(EtcdEndpoint endpoint, parse_etcd_endpoint(url));
    endpoints.push_back(std::move(endpoint));
  }
  REMUSD_TRY(check_options(options, endpoints));
  std::unique_ptr<EtcdTls> tls;
  if (std::any_of(endpoints.begin(), endpoints.end(), [](const EtcdEndpoint& one) { return one.tls; })) {
    REMUSD_ASSIGN(tls, EtcdTls::open(options));
  }
  return std::unique_ptr<EtcdClient>(new EtcdClient(std::move(endpoints), std::move(tls)));
}

EtcdClient::EtcdClient(std::vector<EtcdEndpoint> endpoints, std::unique_ptr<EtcdTls> tls)
    : endpoints_(std::move(endpoints)), tls_(std::move(tls)), description_("etcd"), addresses_(endpoints_) {
  for (const EtcdEndpoint& endpoint : endpoints_) description_ += " " + endpoint.url;
}

Status EtcdClient::check_cluster(uint64_t id) {
  uint64_t known = 0;
  if (cluster_.compare_exchange_strong(known, id) || known == id) return {};
  return {Code::corrupt,
          "it belongs to another etcd cluster than an endpoint that answered before; name the members of one "
          "cluster only, and restart when the cluster was made anew"};
}

EtcdClient::Call::Call(EtcdClient& client, Time deadline) : client_(client), deadline_(deadline) {}
EtcdClient::Call::~Call() = default;

Status EtcdClient::Call::post(const char* target, const std::string& body, const Take& take, bool* repeated) {
  const size_t count = client_.endpoints_.size();
  const size_t first = client_.preferred_;
  Code code = Code::unavailable;
  std::string why;
  *repeated = false;
  for (size_t turn = 0; turn < count; ++turn) {
    const size_t number = (first + turn) % count;
    const size_t left = count - turn;
    const Time now = Clock::now();
    const Duration share = (deadline_ - now) / static_cast<Duration::rep>(left);
    const Time limit = left == 1 ? deadline_ : now + std::min<Duration>(share, kAnswerPatience);
    bool sent = false;
    const Status status = attempt(number, left == 1, limit, target, body, take, &sent);
    if (status.ok()) {
      client_.preferred_ = number;
      return {};
    }
    connection_.reset();
    *repeated = *repeated || sent;
    if (code == Code::unavailable || status.code() == Code::corrupt) code = status.code();
    why += (why.empty() ? "" : "; ") + client_.endpoints_[number].url + ": " + status.message();
  }
  return {code, why};
}

Status EtcdClient::Call::attempt(size_t number, bool last, Time limit, const char* target,
                                 const std::string& body, const Take& take, bool* sent) {
  if (Clock::now() >= limit) return {Code::timed_out, "no time was left"};
  try {
    if (connection_ == nullptr || connected_to_ != number || !connection_->reusable()) {
      const EtcdEndpoint& endpoint = client_.endpoints_[number];
      const Time connected = last ? limit : std::min<Time>(limit, Clock::now() + kConnectPatience);
      REMUSD_ASSIGN(const EtcdAddresses::List addresses, client_.addresses_.of(number, connected));
      connection_ =
          std::make_unique<EtcdConnection>(endpoint, endpoint.tls ? client_.tls_->context() : nullptr);
      connected_to_ = number;
      REMUSD_TRY(connection_->connect(addresses, connected));
    }
    REMUSD_ASSIGN(const std::string answer, connection_->post(target, body, limit, sent));
    return take(answer);
  } catch (const std::exception& error) {  // Asio throws where a descriptor or memory is refused.
    return {Code::io, error.what()};
  }
}

}  // namespace remusd::arbiter
