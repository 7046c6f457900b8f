// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Where a member of etcd answers: an URL of an operator, and the addresses behind it.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/status.h"

namespace remusd::arbiter {

inline constexpr size_t kMaxEtcdEndpoints = 16;
inline constexpr const char* kEtcdEndpointRule = "http://host[:port] or https://host[:port]";

struct EtcdEndpoint {
  std::string url;
  bool tls = false;
  std::string host;  // a name or an address, without brackets
  uint16_t port = 2379;
  std::string host_header;                          // "[::1]:2379"
  std::optional<boost::asio::ip::address> address;  // when the host is one
};
Result<EtcdEndpoint> parse_etcd_endpoint(const std::string& url);

/// The addresses of endpoints. Looking a name up can block for long, so a thread of its own does it, at once
/// and then each minute; without names there is no such thread. Thread-safe. The destructor waits for a
/// look-up that is under way.
class EtcdAddresses {
 public:
  using List = std::vector<boost::asio::ip::tcp::endpoint>;

  explicit EtcdAddresses(const std::vector<EtcdEndpoint>& endpoints);
  ~EtcdAddresses();
  EtcdAddresses(const EtcdAddresses&) = delete;
  EtcdAddresses& operator=(const EtcdAddresses&) = delete;

  /// Of endpoint `number`; never empty. Waits until `limit` only for a name's very first look-up.
  Result<List> of(size_t number, Time limit);

 private:
  struct Entry {
    EtcdEndpoint endpoint;
    List addresses;  // the last that were found: a name server that is down takes none away
    bool looked_up = false;
  };
  void look_up_names();

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  std::vector<Entry> entries_;  // guarded by mutex_, but for `endpoint`, which stays as it is
  std::thread thread_;
};

}  // namespace remusd::arbiter
