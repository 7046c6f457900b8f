// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The verbs list, status and wait.
#include <cinttypes>
#include <cstdio>
#include <thread>

#include "control/cli.h"
#include "control/duration.h"
#include "control/guest_status.h"

namespace remusd::control {
namespace {

uint64_t number(const nlohmann::json& json, const char* key) {
  return json.value(key, uint64_t{0});
}

double real(const nlohmann::json& json, const char* group, const char* key) {
  return json.value(group, nlohmann::json::object()).value(key, 0.0);
}

int list(const CliContext& context) {
  const Reply reply = context.client().get("/v1/guests");
  if (!reply.status.ok()) return tell_failure(reply);
  if (context.json) {
    print_json(reply.body);
  } else {
    print_table(reply.body.value("guests", nlohmann::json::array()));
  }
  return kDone;
}

// A guest whose protection ended is reported by the exit code, too, so that a cron job needs no parser.
int status(const CliContext& context, const std::string& vm) {
  if (vm.empty()) return list(context);
  const Reply reply = context.client().get(guest_url(vm));
  if (!reply.status.ok()) return tell_failure(reply);
  if (context.json) {
    print_json(reply.body);
  } else {
    print_guest(reply.body);
  }
  return reply.body.value("state", "") == "unprotected" ? kUnprotected : kDone;
}

// States that a guest leaves only by another command.
int hopeless(const std::string& wanted, const std::string& state, bool reprotecting) {
  if ((wanted != "protected" && wanted != "standby") || reprotecting) return kDone;
  if (state == "unprotected") return kUnprotected;
  return state == "fenced" || state == "failed" ? kFailed : kDone;
}

int wait(const CliContext& context, const std::string& vm, const std::string& wanted, Duration timeout) {
  const Time deadline = Clock::now() + timeout;
  while (true) {
    const Reply reply = context.client().get(guest_url(vm));
    // Nobody knows it yet: a replica may still come.
    const bool unknown = reply.status.code() == Code::not_found;
    if (!reply.status.ok() && !unknown) return tell_failure(reply);
    const std::string state = unknown ? "unknown" : reply.body.value("state", "");
    if (state == wanted) {
      if (context.json) {
        print_json(reply.body);
      } else {
        std::printf("%s is %s\n", vm.c_str(), state.c_str());
      }
      return kDone;
    }
    const bool reprotecting =
        !unknown && reply.body.contains("reprotect") && !reply.body["reprotect"].is_null();
    if (const int code = hopeless(wanted, state, reprotecting); code != kDone) {
      std::fprintf(stderr, "remusd: wait %s: it is %s and will not become %s by itself: %s\n", vm.c_str(),
                   state.c_str(), wanted.c_str(), reply.body.value("reason", "").c_str());
      return code;
    }
    if (Clock::now() >= deadline) {
      if (unknown) return tell_failure(reply);
      return tell_failure(Status(Code::timed_out, "wait " + vm + ": still " + state + " after " +
                                                      format_duration(timeout) + ", not " + wanted));
    }
    std::this_thread::sleep_for(kLook);
  }
}

void print_reprotect(const nlohmann::json& plan) {
  std::printf("  reprotect   by node %s, %" PRIu64 " attempts, ", plan.value("peer", "").c_str(),
              number(plan, "attempts"));
  const double next_ms = plan.value("next_in_ms", 0.0);
  if (next_ms > 0) {
    std::printf("next in %.1f s", next_ms / 1e3);
  } else {
    std::printf("one under way");
  }
  const std::string error = plan.value("last_error", "");
  std::printf("%s%s\n", error.empty() ? "" : ": ", error.c_str());
}

}  // namespace

void print_guest(const nlohmann::json& guest) {
  const nlohmann::json epochs = guest.value("epochs", nlohmann::json::object());
  std::printf("%s: %s on node %s, %s", guest.value("vm", "").c_str(), guest.value("role", "").c_str(),
              guest.value("node", "").c_str(), guest.value("state", "").c_str());
  if (const std::string peer = guest.value("peer", ""); !peer.empty()) std::printf(", peer %s", peer.c_str());
  std::printf("\n  generation  %" PRIu64 "\n", number(guest, "generation"));
  std::printf("  epochs      sealed %" PRIu64 ", sent %" PRIu64 ", acknowledged %" PRIu64
              ", released %" PRIu64 ", applied %" PRIu64 "\n",
              number(epochs, "sealed"), number(epochs, "sent"), number(epochs, "acked"),
              number(epochs, "released"), number(epochs, "applied"));
  std::printf("  pause       p50 %.2f ms, p99 %.2f ms, max %.2f ms\n", real(guest, "pause_ms", "p50"),
              real(guest, "pause_ms", "p99"), real(guest, "pause_ms", "max"));
  std::printf("  commit      p50 %.2f ms, p99 %.2f ms\n", real(guest, "commit_ms", "p50"),
              real(guest, "commit_ms", "p99"));
  std::printf("  dirty       p50 %.0f pages, p99 %.0f pages\n", real(guest, "dirty_pages", "p50"),
              real(guest, "dirty_pages", "p99"));
  if (const std::string transport = guest.value("transport", ""); !transport.empty()) {
    std::printf("  transport   %s\n", transport == "tls" ? "TLS 1.3" : "plain text: NOT ENCRYPTED");
  }
  std::printf("  tracker     %s\n", guest.value("tracker", "").c_str());
  std::printf("  held        %" PRIu64 " bytes of packets\n", number(guest, "held_bytes"));
  for (const nlohmann::json& disk :
       guest.value("disks", nlohmann::json::object()).value("each", nlohmann::json::array())) {
    std::printf("  disk        %s: %s, %" PRIu64 " MiB, %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64
                " errors\n",
                disk.value("name", "").c_str(), disk.value("path", "").c_str(), number(disk, "bytes") >> 20,
                number(disk, "reads"), number(disk, "writes"), number(disk, "errors"));
  }
  const nlohmann::json resync = guest.value("resync", nlohmann::json::object());
  if (number(resync, "pages_total") > 0) {
    std::printf("  resync      %" PRIu64 " of %" PRIu64 " pages were there already, %" PRIu64 " bytes sent\n",
                number(resync, "pages_matched"), number(resync, "pages_total"), number(resync, "sent_bytes"));
  }
  if (const uint64_t kept = number(guest, "residue_bytes"); kept > 0)
    std::printf("  residue     %" PRIu64 " bytes kept for its next replica here\n", kept);
  if (guest.value("promote_ms", 0.0) > 0)
    std::printf("  promoted in %.1f ms\n", guest.value("promote_ms", 0.0));
  if (guest.value("switchover_ms", 0.0) > 0)
    std::printf("  stood for %.1f ms when it was handed over\n", guest.value("switchover_ms", 0.0));
  const nlohmann::json disks = guest.value("disks", nlohmann::json::object());
  for (const auto& note : disks.value("notes", std::vector<std::string>()))
    std::printf("  note        %s\n", note.c_str());
  const nlohmann::json events = guest.value("guest", nlohmann::json::object());
  const bool panicked = events.value("panicked", false);
  if (const uint64_t reboots = number(events, "reboots"); reboots > 0 || panicked) {
    std::printf("  guest       rebooted %" PRIu64 " times%s\n", reboots,
                panicked ? ", its system panicked" : "");
  }
  if (const std::string reason = guest.value("reason", ""); !reason.empty()) {
    std::printf("  reason      %s\n", reason.c_str());
  }
  if (guest.contains("reprotect") && guest["reprotect"].is_object()) print_reprotect(guest["reprotect"]);
}

void print_table(const nlohmann::json& guests) {
  std::printf("%-16s %-8s %-12s %-12s %10s %10s %12s\n", "VM", "ROLE", "STATE", "PEER", "GENERATION", "ACKED",
              "PAUSE p50 ms");
  for (const nlohmann::json& guest : guests) {
    std::printf("%-16s %-8s %-12s %-12s %10" PRIu64 " %10" PRIu64 " %12.2f\n", guest.value("vm", "").c_str(),
                guest.value("role", "").c_str(), guest.value("state", "").c_str(),
                guest.value("peer", "").c_str(), number(guest, "generation"),
                number(guest.value("epochs", nlohmann::json::object()), "acked"),
                real(guest, "pause_ms", "p50"));
  }
}

void add_list(CLI::App& app, CliContext& context) {
  CLI::App* verb = add_verb(app, "list", "All guests and replicas of this node", "remusd list --json");
  verb->callback([&context] { context.action = [&context] { return list(context); }; });
}

void add_status(CLI::App& app, CliContext& context) {
  const auto vm = std::make_shared<std::string>();
  CLI::App* verb = add_verb(app, "status", "How a guest is; exits with 3 when its protection has ended",
                            "remusd status vm1 --json");
  add_vm(verb, vm.get());
  verb->get_option("VM")->required(false);
  verb->callback([vm, &context] { context.action = [vm, &context] { return status(context, *vm); }; });
}

void add_wait(CLI::App& app, CliContext& context) {
  struct Flags {
    std::string vm, state;
    Duration timeout = std::chrono::seconds(60);
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* verb =
      add_verb(app, "wait", "Wait until a guest is in a state; exits with 5 when it takes too long",
               "remusd wait vm1 --state protected --timeout 30s");
  add_vm(verb, &flags->vm);
  std::vector<std::string> states(kStates.begin(), kStates.end());
  verb->add_option("--state", flags->state, "The state to wait for")
      ->required()
      ->check(CLI::IsMember(states));
  add_duration(verb, "--timeout", &flags->timeout, Duration::zero(), std::chrono::hours(24),
               "How long at most (default 60s)");
  verb->callback([flags, &context] {
    context.action = [flags, &context] { return wait(context, flags->vm, flags->state, flags->timeout); };
  });
}

}  // namespace remusd::control
