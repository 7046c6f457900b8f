// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/etcd_endpoint.h"

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <charconv>

#include "ckpt/thread.h"

namespace remusd::arbiter {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr size_t kMaxAddresses = 8;
constexpr std::chrono::seconds kRefresh{60};
constexpr std::chrono::seconds kRetry{2};  // while a name has no address

bool is_host_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' ||
         c == '_';
}

}  // namespace

Result<EtcdEndpoint> parse_etcd_endpoint(const std::string& url) {
  const Status wrong(Code::invalid, "etcd endpoint '" + url + "' is not " + kEtcdEndpointRule);
  EtcdEndpoint endpoint;
  endpoint.url = url;
  std::string_view rest = url;
  if (rest.size() > 300) return wrong;
  if (rest.starts_with("https://")) {
    endpoint.tls = true;
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else {
    return wrong;
  }
  if (rest.ends_with('/')) rest.remove_suffix(1);
  const bool bracketed = rest.starts_with('[');
  const size_t end = bracketed ? rest.find(']') : rest.find(':');
  if (bracketed && end == std::string_view::npos) return wrong;
  endpoint.host = rest.substr(bracketed ? 1 : 0, bracketed ? end - 1 : end);
  rest.remove_prefix(std::min(rest.size(), bracketed ? end + 1 : endpoint.host.size()));
  if (!rest.empty()) {
    if (!rest.starts_with(':')) return wrong;
    rest.remove_prefix(1);
    const auto parsed = std::from_chars(rest.data(), rest.data() + rest.size(), endpoint.port);
    if (parsed.ec != std::errc() || parsed.ptr != rest.data() + rest.size() || endpoint.port == 0)
      return wrong;
  }
  boost::system::error_code error;
  const asio::ip::address address = asio::ip::make_address(endpoint.host, error);
  if (!error) endpoint.address = address;
  const bool is_v6 = !error && address.is_v6();
  if (bracketed != is_v6) return wrong;
  if (endpoint.host.empty() ||
      (!is_v6 && !std::all_of(endpoint.host.begin(), endpoint.host.end(), is_host_character))) {
    return wrong;
  }
  endpoint.host_header =
      (is_v6 ? "[" + endpoint.host + "]" : endpoint.host) + ":" + std::to_string(endpoint.port);
  return endpoint;
}

EtcdAddresses::EtcdAddresses(const std::vector<EtcdEndpoint>& endpoints) {
  bool names = false;
  for (const EtcdEndpoint& endpoint : endpoints) {
    Entry entry{endpoint, {}, endpoint.address.has_value()};
    if (endpoint.address) entry.addresses.emplace_back(*endpoint.address, endpoint.port);
    names = names || !endpoint.address;
    entries_.push_back(std::move(entry));
  }
  if (names) thread_ = std::thread([this] { look_up_names(); });
}

EtcdAddresses::~EtcdAddresses() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Result<EtcdAddresses::List> EtcdAddresses::of(size_t number, Time limit) {
  std::unique_lock lock(mutex_);
  Entry& entry = entries_[number];
  changed_.wait_until(lock, limit, [&] { return entry.looked_up || stop_; });
  if (!entry.addresses.empty()) return entry.addresses;
  return Status(Code::unavailable, "no address is known for the name '" + entry.endpoint.host + "'");
}

void EtcdAddresses::look_up_names() {
  begin_thread("names");
  asio::io_context loop;
  while (true) {
    bool all = true;
    for (Entry& entry : entries_) {
      if (entry.endpoint.address) continue;
      boost::system::error_code error;
      const auto found =
          tcp::resolver(loop).resolve(entry.endpoint.host, std::to_string(entry.endpoint.port), error);
      List addresses;
      for (const auto& one : found) {
        if (addresses.size() < kMaxAddresses) addresses.push_back(one.endpoint());
      }
      const std::lock_guard lock(mutex_);
      if (!addresses.empty()) entry.addresses = std::move(addresses);
      entry.looked_up = true;
      all = all && !entry.addresses.empty();
      changed_.notify_all();
      if (stop_) return;
    }
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, all ? kRefresh : kRetry, [this] { return stop_; })) return;
  }
}

}  // namespace remusd::arbiter
