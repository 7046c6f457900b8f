// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/http_metrics.h"

#include "control/daemon.h"

namespace remusd::control {
namespace {

constexpr std::string_view kVmPrefix = "/vm/";
constexpr std::string_view kVmSuffix = "/primary";

HttpResponse text(unsigned status, std::string body) {
  return {status, "text/plain; charset=utf-8", std::move(body)};
}

HttpResponse primary_of(const Daemon& daemon, const std::string& vm) {
  const auto found = daemon.status(vm);
  if (!found.ok()) return text(404, "unknown\n");
  static constexpr std::string_view kHeard[] = {"running", "connecting", "syncing", "protected",
                                                "unprotected"};
  bool heard = false;
  for (const std::string_view state : kHeard) heard = heard || state == found->state;
  const bool primary = found->role == "primary" && heard;
  return text(primary ? 200 : 503, found->role + " " + found->state + "\n");
}

}  // namespace

HttpHandler make_http_metrics(Daemon& daemon) {
  return [&daemon](const HttpRequest& request, const HttpReply& reply) {
    const std::string& target = request.target;
    if (request.method != "GET") return reply(text(405, "only GET\n"));
    if (target == "/metrics") {
      return reply({200, "text/plain; version=0.0.4; charset=utf-8", daemon.metrics_text()});
    }
    if (target == "/livez") return reply(text(200, "ok\n"));
    if (target == "/readyz") return reply(daemon.stopping() ? text(503, "stopping\n") : text(200, "ok\n"));
    if (target.size() > kVmPrefix.size() + kVmSuffix.size() && target.rfind(kVmPrefix, 0) == 0 &&
        target.compare(target.size() - kVmSuffix.size(), kVmSuffix.size(), kVmSuffix) == 0) {
      return reply(primary_of(
          daemon, target.substr(kVmPrefix.size(), target.size() - kVmPrefix.size() - kVmSuffix.size())));
    }
    reply(text(404, "not found; try /metrics, /livez, /readyz, /vm/NAME/primary\n"));
  };
}

}  // namespace remusd::control
