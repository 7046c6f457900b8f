// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <memory>
#include <thread>

#include "control/cli.h"

namespace remusd::control {
namespace {

constexpr Duration kHandOver = std::chrono::seconds(5);

// The winner is promoted; its daemon takes the guest into its hands a moment later. Whoever looks next shall
// see that.
void await_hand_over(const CliContext& context, const std::string& vm) {
  const Time deadline = Clock::now() + kHandOver;
  while (Clock::now() < deadline) {
    const Reply now = context.client().get(guest_url(vm));
    if (!now.status.ok() || now.body.value("state", "") != "promoting") return;
    std::this_thread::sleep_for(kLook);
  }
}

struct OrderFlags {
  std::string vm;
  bool dry_run = false, force = false;
};

int failover(const CliContext& context, const OrderFlags& flags) {
  const nlohmann::json arguments{{"dry_run", flags.dry_run}, {"force", flags.force}};
  const int code = act(context, flags.vm, "failover", arguments, flags.vm + ": the backup took over");
  if (code == kDone && !flags.dry_run) await_hand_over(context, flags.vm);
  return code;
}

int switchover(const CliContext& context, const OrderFlags& flags) {
  const nlohmann::json arguments{{"dry_run", flags.dry_run}};
  if (context.json || flags.dry_run) {
    const int code = act(context, flags.vm, "switchover", arguments, "");
    if (code == kDone && !flags.dry_run) await_hand_over(context, flags.vm);
    return code;
  }
  const Reply reply = context.client().post(guest_url(flags.vm, "switchover"), arguments);
  if (!reply.status.ok()) return tell_failure(reply);
  await_hand_over(context, flags.vm);
  const double stood_ms = reply.body.value("switchover_ms", 0.0);
  if (stood_ms > 0) {
    std::printf("%s runs on node %s; it stood for %.1f ms\n", flags.vm.c_str(),
                reply.body.value("peer", "").c_str(), stood_ms);
  } else {
    std::printf("%s runs on this node\n", flags.vm.c_str());
  }
  return kDone;
}

}  // namespace

void add_failover(CLI::App& app, CliContext& context) {
  const auto flags = std::make_shared<OrderFlags>();
  CLI::App* verb = add_verb(app, "failover", "Let the backup take over now; may be given on either side",
                            "remusd failover vm1");
  add_vm(verb, &flags->vm);
  verb->add_flag(
      "--force", flags->force,
      "On the backup: do not wait for the arbiter or the fence agent. DANGER: if the primary still "
      "runs and is heard, the guest runs twice. Only when its host is known to be off");
  add_dry_run(verb, &flags->dry_run);
  verb->callback(
      [flags, &context] { context.action = [flags, &context] { return failover(context, *flags); }; });
}

void add_switchover(CLI::App& app, CliContext& context) {
  const auto flags = std::make_shared<OrderFlags>();
  CLI::App* verb = add_verb(app, "switchover",
                            "Hand a protected guest over to its backup; nothing is lost; on either side",
                            "remusd switchover vm1");
  add_vm(verb, &flags->vm);
  add_dry_run(verb, &flags->dry_run);
  verb->callback(
      [flags, &context] { context.action = [flags, &context] { return switchover(context, *flags); }; });
}

}  // namespace remusd::control
