// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/local_api.h"

#include "control/daemon.h"
#include "guest/json_fields.h"

namespace remusd::control {
namespace {

constexpr std::string_view kGuests = "/v1/guests";

unsigned http_status(const Reply& reply) {
  if (reply.unprotected) return 409;
  switch (reply.status.code()) {
    case Code::ok:
      return 200;
    case Code::invalid:
      return 400;
    case Code::denied:
      return 403;
    case Code::not_found:
      return 404;
    case Code::exists:
    case Code::unsafe:
      return 409;
    case Code::unavailable:
    case Code::exhausted:
      return 503;
    case Code::timed_out:
      return 504;
    case Code::corrupt:
    case Code::unsupported:
    case Code::io:
      return 500;
  }
  return 500;
}

HttpResponse answer(const Reply& reply) {
  // A message may quote bytes of a peer or a hypervisor: what is not UTF-8 is replaced, not thrown about.
  const auto dump = [](const nlohmann::json& document) {
    return document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  if (reply.status.ok()) return {200, "application/json", dump(reply.body) + "\n"};
  const nlohmann::json error{{"error", {{"code", api_code(reply)}, {"message", reply.status.message()}}}};
  return {http_status(reply), "application/json", dump(error) + "\n"};
}

Reply status_of(const Daemon& daemon, const std::string& vm) {
  const auto status = daemon.status(vm);
  if (!status.ok()) return status.status();
  return to_json(*status);
}

}  // namespace

HttpHandler make_local_api(Daemon& daemon) {
  return [&daemon](const HttpRequest& request, HttpReply reply) {
    const std::string& target = request.target;
    const Status nothing(Code::invalid, "no such resource: " + request.method + " " + target);
    if (target == kGuests && request.method == "GET") return reply(answer(Reply(daemon.list())));
    if (target.rfind(std::string(kGuests) + "/", 0) != 0) return reply(answer(nothing));
    const std::string rest = target.substr(kGuests.size() + 1);
    const size_t slash = rest.find('/');
    if (request.method == "GET" && slash == std::string::npos) return reply(answer(status_of(daemon, rest)));
    if (request.method != "POST" || slash == std::string::npos) return reply(answer(nothing));
    const nlohmann::json arguments =
        request.body.empty() ? nlohmann::json::object() : guest::parse_json(request.body);
    if (!arguments.is_object()) {
      return reply(answer(Status(Code::invalid, "the request's body is not a JSON object")));
    }
    daemon.command(rest.substr(0, slash), rest.substr(slash + 1), arguments,
                   [reply = std::move(reply)](const Reply& outcome) { reply(answer(outcome)); });
  };
}

}  // namespace remusd::control
