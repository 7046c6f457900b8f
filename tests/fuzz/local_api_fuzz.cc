// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The local API's requests, to a daemon without guests: method, target and body, each a chunk. An order that
// would start a guest is left out.
#include <nlohmann/json.hpp>

#include "control/daemon.h"
#include "control/local_api.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

struct World {
  ScratchFolder folder;
  std::unique_ptr<control::Daemon> daemon;
  control::HttpHandler handler;
  World() {
    control::Config config;
    config.node = "a";
    config.metrics = "";
    config.state_dir = config.runtime_dir = config.guests_dir = config.arbiter_directory = folder.path();
    config.api = folder.path() + "/api.sock";
    auto opened = control::Daemon::open(config);
    REMUSD_ASSERT(opened.ok(), "the daemon can be opened");
    daemon = *std::move(opened);
    handler = control::make_local_api(*daemon);
  }
};

void run(View bytes) {
  static const World world;
  Input input(bytes);
  control::HttpRequest request;
  request.method = text_of(input.chunk());
  request.target = text_of(input.chunk());
  request.body = text_of(input.rest());
  if (request.target.ends_with("/start") && request.body.find("efinition") != std::string::npos) return;
  if (request.target.ends_with("/start") && request.body.find("\\u") != std::string::npos) return;
  int answers = 0;
  world.handler(request, [&](const control::HttpResponse& response) {
    ++answers;
    REMUSD_ASSERT(response.status >= 200 && response.status < 600, "a status of HTTP");
    const auto json = nlohmann::json::parse(response.body, nullptr, false);
    REMUSD_ASSERT(!json.is_discarded(), "every answer is JSON");
    if (response.status < 300) return;
    REMUSD_ASSERT(json.is_object() && json["error"].is_object() && json["error"]["code"].is_string() &&
                      !json["error"]["message"].get<std::string>().empty(),
                  "an error has a code and says why");
  });
  REMUSD_ASSERT(answers == 1, "each request is answered once");
}

void seeds(Seeds* out) {
  const auto seed = [&](std::string_view method, std::string_view target, std::string_view body) {
    Bytes input;
    put_chunk(method, &input);
    put_chunk(target, &input);
    out->add_text(body, std::move(input));
  };
  seed("GET", "/v1/guests", "");
  seed("GET", "/v1/guests/g", "");
  seed("POST", "/v1/guests/g/start", R"({"dry_run":true})");
  seed("POST", "/v1/guests/g/protect", R"({"peer":"b","epoch_ms":25.5,"dry_run":false})");
  seed("POST", "/v1/guests/g/stop", R"({"force":true})");
  seed("POST", "/v1/guests/g/bench-floor", R"({"epochs":3})");
  for (const char* verb : {"stop", "protect", "unprotect", "failover", "bench-floor", "start"})
    out->words.emplace_back(verb);
  out->words.insert(out->words.end(),
                    {"POST", "GET", "/v1/guests/", "\"peer\"", "\"dry_run\"", "\"epoch_ms\"",
                     "\"max_slowdown_percent\"", "\"latency_target_ms\"", "1e400", "null"});
}

REMUSD_FUZZ_TARGET(local_api, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
