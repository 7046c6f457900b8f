// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One HTTP connection to one member, used by one thread, which blocks until its limit at most.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <functional>
#include <optional>
#include <string>

#include "arbiter/etcd_endpoint.h"
#include "arbiter/etcd_tls.h"

namespace remusd::arbiter {

class EtcdConnection {
 public:
  /// `context` is used for an https endpoint.
  EtcdConnection(const EtcdEndpoint& endpoint, EtcdTls::Context context);

  /// Connects, and verifies who answers. After a failure the object is of no more use.
  Status connect(const EtcdAddresses::List& addresses, Time limit);
  /// The body of an answer with status 200. `sent` becomes true when the request may have reached the server.
  /// After a failure the object is of no more use.
  Result<std::string> post(const char* target, const std::string& body, Time limit, bool* sent);

  /// False when the server ends the connection after the last answer.
  bool reusable() const { return reusable_; }

 private:
  using Done = std::function<void(boost::system::error_code)>;
  boost::system::error_code run(Time limit, const std::function<void(const Done&)>& start);
  template <typename Stream>
  Result<std::string> exchange(Stream& stream, const char* target, const std::string& body, Time limit,
                               bool* sent);

  const EtcdEndpoint& endpoint_;
  const EtcdTls::Context context_;
  boost::asio::io_context loop_{1};
  boost::asio::ip::tcp::socket socket_{loop_};
  std::optional<boost::asio::ssl::stream<boost::asio::ip::tcp::socket&>> tls_;
  boost::beast::flat_buffer buffer_;
  bool reusable_ = true;
};

}  // namespace remusd::arbiter
