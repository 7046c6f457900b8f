// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/api_client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <optional>

#include "guest/json_fields.h"

namespace remusd::control {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

constexpr size_t kMaxAnswerBytes = 16u << 20;

Reply from_answer(unsigned status, const std::string& body) {
  const nlohmann::json json = guest::parse_json(body);
  if (json.is_discarded() || !json.is_object()) {
    return Status(Code::corrupt, "the daemon answered HTTP " + std::to_string(status) + " without JSON");
  }
  if (status < 300) return Reply(json);
  const auto text = [&json](const char* key, std::string otherwise) {
    const auto error = json.find("error");
    if (error == json.end() || !error->is_object()) return otherwise;
    const auto member = error->find(key);
    return member != error->end() && member->is_string() ? member->get<std::string>() : otherwise;
  };
  const std::string code = text("code", "io");
  const std::string message = text("message", "the daemon answered HTTP " + std::to_string(status));
  if (code == "unprotected") return Reply::not_protected(message);
  return Status(code_from_string(code).value_or(Code::io), message);
}

}  // namespace

Reply ApiClient::get(const std::string& target, Duration limit) const {
  return call("GET", target, "", limit);
}

Reply ApiClient::post(const std::string& target, const nlohmann::json& body, Duration limit) const {
  return call("POST", target, body.dump(), limit);
}

Reply ApiClient::call(const std::string& method, const std::string& target, const std::string& body,
                      Duration limit) const {
  asio::io_context loop;
  asio::local::stream_protocol::socket socket(loop);
  boost::system::error_code error;
  if (path_.empty() || path_.size() > 107) {
    return Status(Code::invalid, "API socket '" + path_ + "': not a path of 1 to 107 bytes");
  }
  socket.connect({path_}, error);  // Local: answers at once.
  if (error) {
    return Status(
        error == asio::error::access_denied ? Code::denied : Code::unavailable,
        "cannot reach remusd at " + path_ + ": " + error.message() + "; is 'remusd serve' running?");
  }
  http::request<http::string_body> request(http::string_to_verb(method), target, 11);
  request.set(http::field::host, "remusd");
  request.set(http::field::content_type, "application/json");
  request.keep_alive(false);
  request.body() = body;
  request.prepare_payload();

  std::optional<boost::system::error_code> done;
  beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxAnswerBytes);
  http::async_write(socket, request, [&](beast::error_code written, size_t) {
    if (written) {
      done = written;
      return;
    }
    http::async_read(socket, buffer, parser, [&](beast::error_code read, size_t) { done = read; });
  });
  loop.run_for(limit);
  if (!done) {
    socket.close(error);
    loop.restart();
    loop.run();  // Lets the cancelled operations go before what they refer to.
    return Status(Code::timed_out,
                  "remusd at " + path_ + " did not answer " + method + " " + target + " in time");
  }
  if (*done) {
    return Status(Code::unavailable, "remusd at " + path_ + " broke off: " + done->message());
  }
  return from_answer(parser.get().result_int(), parser.get().body());
}

}  // namespace remusd::control
