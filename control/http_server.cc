// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/http_server.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>

#include "control/address.h"
#include "control/log.h"

namespace remusd::control {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using AnyStream = asio::generic::stream_protocol;

constexpr int kMaxConnections = 64;
constexpr size_t kMaxBodyBytes = 1u << 20;
constexpr uint32_t kMaxHeaderBytes = 16u << 10;
constexpr std::chrono::seconds kIoTimeout{10};
constexpr std::chrono::milliseconds kAcceptRetry{100};  // out of descriptors, say

// One connection: read, handle, write, and again while it is kept alive.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(AnyStream::socket socket, const HttpHandler& handler, std::shared_ptr<std::atomic<int>> open)
      : stream_(std::move(socket)), handler_(handler), open_(std::move(open)) {
    ++*open_;
  }
  ~Connection() { --*open_; }

  void read() {
    parser_.emplace();
    parser_->body_limit(kMaxBodyBytes);
    parser_->header_limit(kMaxHeaderBytes);
    stream_.expires_after(kIoTimeout);
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) { self->on_read(error); });
  }

 private:
  void on_read(beast::error_code error) {
    if (error == http::error::body_limit || error == http::error::header_limit) {
      keep_alive_ = false;
      return write({413, "text/plain", "the request is too large\n"});
    }
    if (error) return;
    const auto& message = parser_->get();
    keep_alive_ = message.keep_alive();
    version_ = message.version();
    stream_.expires_never();  // The handler has deadlines of its own.
    HttpRequest request{std::string(message.method_string()), std::string(message.target()), message.body()};
    // The answer may come from any thread; the stream belongs to the loop.
    handler_(request, [self = shared_from_this()](HttpResponse response) {
      asio::post(self->stream_.get_executor(),
                 [self, response = std::move(response)]() mutable { self->write(std::move(response)); });
    });
  }

  void write(HttpResponse response) {
    response_ = http::response<http::string_body>(static_cast<http::status>(response.status), version_);
    response_.set(http::field::server, "remusd");
    response_.set(http::field::content_type, response.content_type);
    response_.keep_alive(keep_alive_);
    response_.body() = std::move(response.body);
    response_.prepare_payload();
    stream_.expires_after(kIoTimeout);
    http::async_write(stream_, response_, [self = shared_from_this()](beast::error_code error, size_t) {
      if (!error && self->keep_alive_) self->read();
    });
  }

  beast::basic_stream<AnyStream> stream_;
  HttpHandler handler_;
  // The last to let go of a connection may be a worker that has answered.
  std::shared_ptr<std::atomic<int>> open_;
  beast::flat_buffer buffer_{kMaxHeaderBytes + kMaxBodyBytes};
  std::optional<http::request_parser<http::string_body>> parser_;
  http::response<http::string_body> response_;
  unsigned version_ = 11;
  bool keep_alive_ = false;
};

constexpr uid_t kNobodyKnown = static_cast<uid_t>(-1);

/// The user at the other end of a unix socket.
uid_t user_of(int fd) {
  ucred peer{};
  socklen_t size = sizeof peer;
  return ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.uid : kNobodyKnown;
}

// Only root and the daemon's own user may give orders, whatever the socket's mode became.
bool may_command(uid_t user) {
  return user != kNobodyKnown && (user == 0 || user == ::geteuid());
}

void deny(const HttpRequest&, const HttpReply& reply) {
  reply({403, "application/json",
         R"({"error":{"code":"denied","message":"only root and the daemon's own user may give it orders"}})"
         "\n"});
}

}  // namespace

class HttpServer::Impl {
 public:
  virtual ~Impl() = default;
  virtual void stop() = 0;
};

namespace {

template <typename Protocol>
class Listener : public std::enable_shared_from_this<Listener<Protocol>> {
 public:
  Listener(typename Protocol::acceptor acceptor, HttpHandler handler, bool check_user)
      : acceptor_(std::move(acceptor)),
        retry_(acceptor_.get_executor()),
        handler_(std::move(handler)),
        check_user_(check_user) {}

  void accept() {
    acceptor_.async_accept(
        [self = this->shared_from_this()](boost::system::error_code error, typename Protocol::socket socket) {
          if (!self->acceptor_.is_open()) return;
          if (error) {
            self->retry_.expires_after(kAcceptRetry);
            self->retry_.async_wait([self](boost::system::error_code cancelled) {
              if (!cancelled) self->accept();
            });
            return;
          }
          self->serve(std::move(socket));
          self->accept();
        });
  }

  void stop() {
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    retry_.cancel();
  }

 private:
  void serve(typename Protocol::socket socket) {
    if (*open_ >= kMaxConnections) return;
    const uid_t user = check_user_ ? user_of(socket.native_handle()) : 0;
    const bool denied = check_user_ && !may_command(user);
    if (denied) {
      log(LogLevel::warn, {},
          "refused a request of user " + std::to_string(user) +
              " on the API socket: only root and the daemon's own "
              "user may give orders");
    }
    std::make_shared<Connection>(AnyStream::socket(std::move(socket)), denied ? HttpHandler(deny) : handler_,
                                 open_)
        ->read();
  }

  typename Protocol::acceptor acceptor_;
  asio::steady_timer retry_;
  HttpHandler handler_;
  bool check_user_;
  std::shared_ptr<std::atomic<int>> open_ = std::make_shared<std::atomic<int>>(0);
};

}  // namespace

namespace {
template <typename Protocol, typename Base>
class ListenerImpl : public Base {
 public:
  ListenerImpl(typename Protocol::acceptor acceptor, HttpHandler handler, bool check_user, std::string path)
      : listener_(std::make_shared<Listener<Protocol>>(std::move(acceptor), std::move(handler), check_user)),
        path_(std::move(path)) {
    listener_->accept();
  }
  ~ListenerImpl() override { listener_->stop(); }
  void stop() override {
    listener_->stop();
    if (!path_.empty()) ::unlink(path_.c_str());
    path_.clear();
  }

 private:
  std::shared_ptr<Listener<Protocol>> listener_;
  std::string path_;  // of the unix socket, removed at the end
};

Status replace_dead_socket(asio::io_context& loop, const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return {};
  if (!S_ISSOCK(info.st_mode))
    return {Code::exists, "API socket " + path + ": something else is there; move it away"};
  asio::local::stream_protocol::socket probe(loop);
  boost::system::error_code error;
  probe.connect({path}, error);
  if (!error) return {Code::exists, "API socket " + path + ": another remusd serves it; stop that one first"};
  ::unlink(path.c_str());
  return {};
}

}  // namespace

HttpServer::HttpServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() {
  impl_->stop();
}
void HttpServer::stop() {
  impl_->stop();
}

Result<std::unique_ptr<HttpServer>> HttpServer::listen_unix(asio::io_context& loop, const std::string& path,
                                                            HttpHandler handler) {
  using Protocol = asio::local::stream_protocol;
  REMUSD_TRY(replace_dead_socket(loop, path));
  Protocol::acceptor acceptor(loop);
  boost::system::error_code error;
  acceptor.open(Protocol(), error);
  // Before bind() the mode is the process's umask: nobody else may connect, not even for a moment.
  const mode_t before = ::umask(0177);
  if (!error) acceptor.bind({path}, error);
  ::umask(before);
  if (!error) acceptor.listen(64, error);
  if (error) return Status(Code::unavailable, "API socket " + path + ": " + error.message());
  return std::unique_ptr<HttpServer>(new HttpServer(
      std::make_shared<ListenerImpl<Protocol, Impl>>(std::move(acceptor), std::move(handler), true, path)));
}

Result<std::unique_ptr<HttpServer>> HttpServer::listen_tcp(asio::io_context& loop, const std::string& address,
                                                           HttpHandler handler) {
  using Protocol = asio::ip::tcp;
  REMUSD_ASSIGN(Protocol::acceptor acceptor, listen_on(loop, address, "metrics endpoint"));
  return std::unique_ptr<HttpServer>(new HttpServer(
      std::make_shared<ListenerImpl<Protocol, Impl>>(std::move(acceptor), std::move(handler), false, "")));
}

}  // namespace remusd::control
