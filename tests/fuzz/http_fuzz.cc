// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Requests over a real connection to the server of the local API, whose handler says how much it got.
#include <sys/un.h>

#include "control/http_server.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

constexpr int kMostTurns = 10000;

struct World {
  ScratchFolder folder;
  boost::asio::io_context loop{1};
  std::unique_ptr<control::HttpServer> server;
  size_t requests = 0;
  sockaddr_un address{};

  World() {
    const std::string path = folder.path() + "/s";
    auto listening = control::HttpServer::listen_unix(
        loop, path, [this](const control::HttpRequest& request, const control::HttpReply& reply) {
          ++requests;
          REMUSD_ASSERT(request.body.size() <= 1u << 20 && request.target.size() <= 16u << 10,
                        "requests are bounded");
          reply({200, "text/plain", std::to_string(request.body.size()) + "\n"});
        });
    REMUSD_ASSERT(listening.ok(), "the socket can be made");
    server = *std::move(listening);
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
  }
};

void run(View bytes) {
  static World world;
  world.requests = 0;
  const ScopedFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const auto* address = reinterpret_cast<const sockaddr*>(&world.address);
  REMUSD_ASSERT(::connect(client.get(), address, sizeof world.address) == 0, "the server takes connections");
  say_and_end(client.get(), bytes);
  std::string answers;
  char buffer[4096];
  bool ended = false;
  for (int turn = 0; turn < kMostTurns && !ended; ++turn) {
    world.loop.restart();
    world.loop.poll();
    for (;;) {
      const ssize_t got = ::recv(client.get(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (got > 0) answers.append(buffer, static_cast<size_t>(got));
      ended = got == 0 || (got < 0 && errno == ECONNRESET);
      if (got <= 0) break;
    }
  }
  REMUSD_ASSERT(ended, "a connection whose client is done is closed");
  REMUSD_ASSERT(answers.empty() || answers.starts_with("HTTP/1."), "answers are HTTP");
  REMUSD_ASSERT(world.requests > 0 || answers.empty() || answers.find(" 413 ") != std::string::npos,
                "only what was asked is answered");
}

void seeds(Seeds* out) {
  out->add_text("GET /v1/guests HTTP/1.1\r\nHost: remusd\r\n\r\n");
  out->add_text(
      "POST /v1/guests/g/stop HTTP/1.1\r\nHost: remusd\r\nContent-Length: 2\r\n\r\n{}"
      "GET / HTTP/1.0\r\n\r\n");
  out->add_text("POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
  out->add_text("POST /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n");
  out->words = {"HTTP/1.1",
                "HTTP/1.0",
                "\r\n",
                "Content-Length: ",
                "Transfer-Encoding: chunked",
                "Connection: ",
                "close",
                "keep-alive",
                "Upgrade",
                "GET ",
                "POST ",
                "HEAD ",
                "CONNECT ",
                "Host: "};
}

REMUSD_FUZZ_TARGET(http, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
