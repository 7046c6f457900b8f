// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The verbs start and stop.
#include "control/cli.h"
#include "control/duration.h"
#include "control/guest_file.h"

namespace remusd::control {

void add_start(CLI::App& app, CliContext& context) {
  struct Flags {
    std::string vm, definition;
    bool force = false, dry_run = false;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* verb =
      add_verb(app, "start", "Start a guest here, or attach to it when its definition has [attach]",
               "remusd start vm1 --definition ./vm1.toml");
  add_vm(verb, &flags->vm);
  verb->add_option("--definition", flags->definition,
                   "The guest's TOML file (default: NAME.toml of guests_dir)");
  verb->add_flag("--force", flags->force,
                 "Start it although a peer may hold a newer state of it. Danger: what that peer "
                 "acknowledged, and clients were told, is lost");
  add_dry_run(verb, &flags->dry_run);
  verb->callback([flags, &context] {
    context.action = [flags, &context]() -> int {
      nlohmann::json arguments{{"dry_run", flags->dry_run}, {"force", flags->force}};
      if (!flags->definition.empty()) {
        const auto definition = load_guest_file(flags->definition);
        if (!definition.ok()) {
          tell_failure(definition.status());
          return kUsage;
        }
        arguments["definition"] = nlohmann::json::parse(guest::to_json(*definition));
      }
      return act(context, flags->vm, "start", arguments, flags->vm + " runs here");
    };
  });
}

void add_stop(CLI::App& app, CliContext& context) {
  struct Flags {
    std::string vm;
    bool graceful = false, dry_run = false;
    Duration timeout = std::chrono::seconds(60);
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, "stop", "End a guest that runs here; its protection ends first",
                            "remusd stop vm1 --graceful --timeout 30s");
  add_vm(verb, &flags->vm);
  verb->add_flag("--graceful", flags->graceful, "Press its power button and wait until it has powered off");
  add_duration(verb, "--timeout", &flags->timeout, std::chrono::milliseconds(100), std::chrono::minutes(60),
               "How long to wait for --graceful (default 60s)");
  add_dry_run(verb, &flags->dry_run);
  verb->callback([flags, &context] {
    context.action = [flags, &context]() -> int {
      const nlohmann::json arguments{
          {"graceful", flags->graceful}, {"timeout_ms", to_ms(flags->timeout)}, {"dry_run", flags->dry_run}};
      const Reply reply = context.client().post(guest_url(flags->vm, "stop"), arguments,
                                                flags->timeout + std::chrono::seconds(30));
      if (!reply.status.ok()) return tell_failure(reply);
      if (context.json) {
        print_json(reply.body);
      } else if (reply.body.contains("would")) {
        std::printf("would %s\n", reply.body.value("would", "").c_str());
      } else {
        std::printf("%s is stopped\n", flags->vm.c_str());
      }
      return kDone;
    };
  });
}

}  // namespace remusd::control
