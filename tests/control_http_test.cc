// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <filesystem>
#include <thread>

#include "control/api_client.h"
#include "control/http_server.h"

namespace remusd::control {
namespace {

// A server on a unix socket with a loop of its own.
class HttpTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = (std::filesystem::temp_directory_path() / "remusd-http-XXXXXX").string();
    ASSERT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
    socket_ = directory_ + "/api.sock";
  }
  void serve(HttpHandler handler) {
    auto server = HttpServer::listen_unix(loop_, socket_, std::move(handler));
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
    thread_ = std::thread([this] { loop_.run(); });
  }
  void TearDown() override {
    stop();
    std::filesystem::remove_all(directory_);
  }
  // Afterwards nobody calls the handler, or holds what it captured.
  void stop() {
    if (!thread_.joinable()) return;
    boost::asio::post(loop_, [this] {
      if (server_ != nullptr) server_->stop();
      guard_.reset();
      loop_.stop();
    });
    thread_.join();
    server_.reset();
  }

  std::string directory_, socket_;
  boost::asio::io_context loop_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_{loop_.get_executor()};
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

TEST_F(HttpTest, ARequestIsAnsweredAndTheSocketIsPrivate) {
  serve([](const HttpRequest& request, const HttpReply& reply) {
    const nlohmann::json body{{"method", request.method}, {"target", request.target}, {"body", request.body}};
    reply({200, "application/json", body.dump()});
  });
  struct stat info {};
  ASSERT_EQ(::stat(socket_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const Reply reply = ApiClient(socket_).post("/x", {{"a", 1}});
  ASSERT_TRUE(reply.status.ok()) << reply.status.message();
  EXPECT_EQ(reply.body.value("method", ""), "POST");
  EXPECT_EQ(reply.body.value("target", ""), "/x");
  EXPECT_EQ(reply.body.value("body", ""), "{\"a\":1}");
}

/// What user `nobody` gets at the socket: the code of its answer.
Code ask_as_nobody(const std::string& socket) {
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (::setgid(kNobody) != 0 || ::setuid(kNobody) != 0) ::_exit(99);
    ::_exit(static_cast<int>(ApiClient(socket).post("/v1/guests/vm1/stop", {}).status.code()));
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return static_cast<Code>(WEXITSTATUS(status));
}

// Fault 46.
TEST_F(HttpTest, AnotherUserGivesNoOrdersWhateverTheSocketsMode) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to be somebody else";
  std::atomic<int> orders = 0;
  serve([&orders](const HttpRequest&, const HttpReply& reply) {
    ++orders;
    reply({200, "application/json", "{}"});
  });
  EXPECT_TRUE(ApiClient(socket_).get("/x").status.ok());
  ASSERT_EQ(orders, 1);
  ASSERT_EQ(::chmod(directory_.c_str(), 0755), 0);
  EXPECT_NE(ask_as_nobody(socket_), Code::ok) << "the socket's mode";
  ASSERT_EQ(::chmod(socket_.c_str(), 0666), 0);
  testing::internal::CaptureStderr();
  EXPECT_EQ(ask_as_nobody(socket_), Code::denied) << "told";
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("refused a request of user 65534"));
  EXPECT_EQ(orders, 1);
}

TEST_F(HttpTest, AFailureComesBackAsItWasMeant) {
  serve([](const HttpRequest&, const HttpReply& reply) {
    reply({409, "application/json", R"({"error":{"code":"unsafe","message":"no"}})"});
  });
  const Reply reply = ApiClient(socket_).get("/x");
  EXPECT_EQ(reply.status.code(), Code::unsafe);
  EXPECT_EQ(reply.status.message(), "no");
}

TEST_F(HttpTest, AnAnswerMayComeLaterAndFromAnotherThread) {
  std::thread worker;
  serve([&worker](const HttpRequest&, HttpReply reply) {
    worker = std::thread([reply = std::move(reply)] { reply({200, "application/json", "{}"}); });
  });
  EXPECT_TRUE(ApiClient(socket_).get("/x").status.ok());
  worker.join();
}

TEST_F(HttpTest, NoAnswerInTimeIsTimedOut) {
  std::vector<HttpReply> kept;  // A reply that is dropped would close the connection.
  serve([&kept](const HttpRequest&, const HttpReply& reply) { kept.push_back(reply); });
  EXPECT_EQ(ApiClient(socket_).get("/x", std::chrono::milliseconds(50)).status.code(), Code::timed_out);
  stop();
}

TEST_F(HttpTest, ATooLargeRequestIsRefused) {
  serve([](const HttpRequest&, const HttpReply& reply) { reply({200, "application/json", "{}"}); });
  const Reply reply = ApiClient(socket_).post("/x", {{"a", std::string(2u << 20, 'x')}});
  EXPECT_FALSE(reply.status.ok());
}

TEST_F(HttpTest, NobodyAtTheSocketIsUnavailable) {
  EXPECT_EQ(ApiClient(socket_).get("/x").status.code(), Code::unavailable);
}

TEST_F(HttpTest, AnErrorOfAnotherFormIsStillAnError) {
  serve([](const HttpRequest& request, const HttpReply& reply) {
    reply({500, "application/json",
           request.target == "/word" ? R"({"error":"x"})" : R"({"error":{"code":1}})"});
  });
  for (const char* target : {"/word", "/number"}) {
    const Reply reply = ApiClient(socket_).get(target);
    EXPECT_EQ(reply.status.code(), Code::io);
    EXPECT_NE(reply.status.message().find("500"), std::string::npos);
  }
}

TEST_F(HttpTest, ADeadSocketIsReplacedALiveOneIsNot) {
  serve([](const HttpRequest&, const HttpReply& reply) { reply({200, "application/json", "{}"}); });
  boost::asio::io_context other;
  EXPECT_EQ(HttpServer::listen_unix(other, socket_, {}).status().code(), Code::exists);
  const std::string dead = directory_ + "/dead.sock";
  { auto gone = HttpServer::listen_unix(other, dead, {}); }
  EXPECT_TRUE(HttpServer::listen_unix(other, dead, {}).ok());
}

}  // namespace
}  // namespace remusd::control
