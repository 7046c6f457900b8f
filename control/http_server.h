// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A small HTTP/1.1 server on an Asio loop, over a unix socket or TCP. Bounds: connections, header and body
// size, time to send a request and to take an answer. Everything runs on the loop's thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "ckpt/status.h"

namespace remusd::control {

struct HttpRequest {
  std::string method;  // "GET"
  std::string target;  // "/v1/guests"
  std::string body;
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "application/json";
  std::string body;
};

/// Answers by calling `reply` once, now or later, from any thread. Must not block.
using HttpReply = std::function<void(HttpResponse)>;
using HttpHandler = std::function<void(const HttpRequest& request, HttpReply reply)>;

class HttpServer {
 public:
  /// Listens on a unix socket of mode 0600 that only root and this process's user may speak to. A socket
  /// that a dead daemon left behind is replaced; one that answers is an error.
  static Result<std::unique_ptr<HttpServer>> listen_unix(boost::asio::io_context& loop,
                                                         const std::string& path, HttpHandler handler);
  /// Listens on "host:port".
  static Result<std::unique_ptr<HttpServer>> listen_tcp(boost::asio::io_context& loop,
                                                        const std::string& address, HttpHandler handler);
  ~HttpServer();

  /// Takes no more connections; those that are being answered go on.
  void stop();

 private:
  class Impl;
  explicit HttpServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace remusd::control
