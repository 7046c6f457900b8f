// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/etcd_connection.h"

#include <openssl/ssl.h>

#include <boost/asio/connect.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/beast/http.hpp>

#include "arbiter/etcd_codec.h"

namespace remusd::arbiter {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr uint32_t kMaxHeaderBytes = 16u << 10;

Status failure(const std::string& what, const error_code& error) {
  const bool late = error == asio::error::timed_out;
  return {late ? Code::timed_out : Code::unavailable, what + ": " + (late ? "no answer" : error.message())};
}

}  // namespace

EtcdConnection::EtcdConnection(const EtcdEndpoint& endpoint, EtcdTls::Context context)
    : endpoint_(endpoint), context_(std::move(context)), buffer_(kMaxEtcdAnswerBytes + kMaxHeaderBytes) {}

// Runs one operation. At the limit its socket is closed, and what was under way ends before this returns.
error_code EtcdConnection::run(Time limit, const std::function<void(const Done&)>& start) {
  std::optional<error_code> result;
  start([&result](error_code error) { result = error; });
  loop_.restart();
  loop_.run_until(limit);
  if (result) return *result;
  error_code ignored;
  socket_.close(ignored);
  loop_.restart();
  loop_.run();
  return asio::error::timed_out;
}

Status EtcdConnection::connect(const EtcdAddresses::List& addresses, Time limit) {
  error_code error = run(limit, [&](const Done& done) {
    asio::async_connect(socket_, addresses, [done](error_code result, const auto&) { done(result); });
  });
  if (error) return failure("connect", error);
  socket_.set_option(asio::ip::tcp::no_delay(true), error);
  if (!endpoint_.tls) return {};
  tls_.emplace(socket_, *context_);
  SSL* session = tls_->native_handle();
  if (!endpoint_.address && SSL_set_tlsext_host_name(session, endpoint_.host.c_str()) != 1) {
    return {Code::io, "TLS: the server's name is refused"};
  }
  tls_->set_verify_callback(asio::ssl::host_name_verification(endpoint_.host), error);
  if (error) return failure("TLS", error);
  error = run(limit, [&](const Done& done) { tls_->async_handshake(asio::ssl::stream_base::client, done); });
  if (!error) return {};
  if (error == asio::error::timed_out) return failure("TLS", error);
  return {Code::unavailable, describe_tls_error(error, SSL_get_verify_result(session))};
}

Result<std::string> EtcdConnection::post(const char* target, const std::string& body, Time limit,
                                         bool* sent) {
  if (tls_) return exchange(*tls_, target, body, limit, sent);
  return exchange(socket_, target, body, limit, sent);
}

template <typename Stream>
Result<std::string> EtcdConnection::exchange(Stream& stream, const char* target, const std::string& body,
                                             Time limit, bool* sent) {
  http::request<http::string_body> request(http::verb::post, target, 11);
  request.set(http::field::host, endpoint_.host_header);
  request.set(http::field::user_agent, "remusd");
  request.set(http::field::content_type, "application/json");
  request.body() = body;
  request.prepare_payload();
  *sent = true;
  error_code error = run(limit, [&](const Done& done) {
    http::async_write(stream, request, [done](error_code result, size_t) { done(result); });
  });
  if (error) return failure("send", error);
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxEtcdAnswerBytes);
  parser.header_limit(kMaxHeaderBytes);
  error = run(limit, [&](const Done& done) {
    http::async_read(stream, buffer_, parser, [done](error_code result, size_t) { done(result); });
  });
  if (error) return failure("receive", error);
  auto& answer = parser.get();
  reusable_ = answer.keep_alive();
  if (answer.result() != http::status::ok) {
    const std::string why = decode_etcd_error(answer.body());
    return Status(Code::unavailable,
                  "HTTP " + std::to_string(answer.result_int()) + (why.empty() ? "" : ": " + why));
  }
  return std::move(answer.body());
}

}  // namespace remusd::arbiter
