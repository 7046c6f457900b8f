// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The verb resync.
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <thread>

#include "control/cli.h"

namespace remusd::control {
namespace {

struct ResyncFlags {
  std::string vm;
  bool verify = false, dry_run = false;
  Duration timeout = std::chrono::hours(1);
};

uint64_t bytes_of(const nlohmann::json& verify, const char* name) {
  return verify.value(name, uint64_t{0});
}

/// What came of it, as an exit code: both are equal or it failed.
int tell_outcome(const std::string& vm, const nlohmann::json& verify) {
  const std::string state = verify.value("state", "");
  if (state == "failed") {
    std::fprintf(stderr, "remusd: resync --verify %s: %s\n", vm.c_str(), verify.value("failure", "").c_str());
    return kFailed;
  }
  const uint64_t different = bytes_of(verify, "different_bytes"), busy = bytes_of(verify, "busy_bytes");
  std::printf("%s: %" PRIu64 " bytes of its disks compared", vm.c_str(), bytes_of(verify, "compared_bytes"));
  if (busy > 0) std::printf(", %" PRIu64 " changed too often to tell", busy);
  if (different == 0) {
    std::printf(": no difference\n");
    return kDone;
  }
  std::printf(": %" PRIu64 " bytes DIFFER\n", different);
  for (const nlohmann::json& place : verify.value("places", nlohmann::json::array()))
    std::printf("  disk %" PRIu64 ", byte %" PRIu64 "\n", bytes_of(place, "disk"), bytes_of(place, "offset"));
  std::fprintf(stderr, "remusd: the replica of %s is not its disk; 'remusd resync %s' brings it there\n",
               vm.c_str(), vm.c_str());
  return kFailed;
}

int verify(const CliContext& context, const ResyncFlags& flags) {
  const Time deadline = Clock::now() + flags.timeout;
  Reply now = context.client().post(guest_url(flags.vm, "resync"), {{"verify", true}});
  uint64_t number = 0;
  for (;; now = context.client().get(guest_url(flags.vm))) {
    if (!now.status.ok()) return tell_failure(now);
    const nlohmann::json disks = now.body.value("disks", nlohmann::json::object());
    const nlohmann::json verify = disks.value("verify", nlohmann::json::object());
    const uint64_t shown = bytes_of(verify, "number");
    if (number == 0) number = shown;
    if (shown != number || now.body.value("state", "") != "protected")
      return tell_failure(Reply(
          Status(Code::unavailable, "resync --verify " + flags.vm + ": its protection ended meanwhile")));
    if (verify.value("state", "") != "running") {
      if (!context.json) return tell_outcome(flags.vm, verify);
      print_json(now.body);
      return verify.value("state", "") == "equal" ? kDone : kFailed;
    }
    if (Clock::now() > deadline)
      return tell_failure(
          Reply(Status(Code::timed_out, "resync --verify " + flags.vm + ": it goes on; see 'remusd status " +
                                            flags.vm + "'")));
    std::this_thread::sleep_for(kLook);
  }
}

int resync(const CliContext& context, const ResyncFlags& flags) {
  if (flags.verify && !flags.dry_run) return verify(context, flags);
  return act(context, flags.vm, "resync", {{"verify", flags.verify}, {"dry_run", flags.dry_run}},
             flags.vm +
                 ": all that its disks hold is compared again, and what differs is copied; "
                 "'remusd wait " +
                 flags.vm + " --state protected' tells when");
}

}  // namespace

void add_resync(CLI::App& app, CliContext& context) {
  const auto flags = std::make_shared<ResyncFlags>();
  CLI::App* verb =
      add_verb(app, "resync",
               "Protect a guest anew, comparing all that its disks hold with their replica; it is "
               "unprotected until that is done",
               "remusd resync vm1 --verify");
  add_vm(verb, &flags->vm);
  verb->add_flag("--verify", flags->verify,
                 "Only compare, while the guest runs and stays protected; exit code 1 when they differ");
  add_duration(verb, "--timeout", &flags->timeout, std::chrono::seconds(1), std::chrono::hours(24 * 7),
               "How long to wait for --verify (default 1h); it goes on after that");
  add_dry_run(verb, &flags->dry_run);
  verb->callback(
      [flags, &context] { context.action = [flags, &context] { return resync(context, *flags); }; });
}

}  // namespace remusd::control
