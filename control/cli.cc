// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/cli.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "ckpt/fail_point.h"
#include "control/config.h"
#include "control/duration.h"
#include "control/toml_reader.h"

namespace remusd::control {
namespace {

using AddVerb = void (*)(CLI::App&, CliContext&);
constexpr AddVerb kVerbs[] = {add_serve,    add_start,      add_stop,   add_protect, add_unprotect,
                              add_failover, add_switchover, add_resync, add_list,    add_status,
                              add_wait,     add_bench,      add_keys};

constexpr const char* kFooter =
    "Exit codes: 0 done, 1 failed, 2 usage, 3 unprotected, 4 no such guest, 5 timed out, 6 refused as "
    "unsafe.\n"
    "Example: remusd protect vm1 --peer b";

std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
  const auto left = app.remaining();
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr && app.get_subcommands().empty()) {
    if (left.empty()) return "a verb is needed";
    return (left[0].rfind('-', 0) == 0 ? "unknown flag '" : "unknown verb '") + left[0] + "'";
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const auto all = app.remaining(true);
    if (!all.empty())
      return (all[0].rfind('-', 0) == 0 ? "unknown flag '" : "unexpected argument '") + all[0] + "'";
  }
  std::string message = error.what();
  for (char& c : message) c = c == '\n' ? ' ' : c;
  return message;
}

}  // namespace

int run_command_line(int argc, const char* const* argv) {
  CLI::App app("remusd keeps a running virtual machine alive through the loss of its host.", "remusd");
  CliContext context;
  const char* socket = std::getenv("REMUSD_API");
  context.api = socket != nullptr ? socket : kDefaultApi;
  app.set_version_flag("--version", "remusd " REMUSD_VERSION);
  app.add_option("--api", context.api, "Unix socket of the daemon (environment: REMUSD_API)")
      ->capture_default_str();
  app.add_flag("--json", context.json, "Print JSON with a schema_version");
#if defined(REMUSD_FAILPOINTS)
  app.add_flag_callback(
      "--fail-points",
      [] {
        for (const std::string_view name : kFailPoints) std::cout << name << '\n';
        throw CLI::Success();
      },
      "Print the names of the fail points, which only this build has");
#endif
  app.footer(kFooter);
  app.require_subcommand(1);
  for (const AddVerb add : kVerbs) add(app, context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    std::string verb;
    for (const CLI::App* used : app.get_subcommands()) verb = " " + used->get_name();
    std::fprintf(stderr, "remusd%s: %s; see 'remusd%s --help'\n", verb.c_str(),
                 usage_message(app, error).c_str(), verb.c_str());
    return kUsage;
  }
  return context.action();
}

CLI::App* add_verb(CLI::App& app, const std::string& name, const std::string& what,
                   const std::string& example) {
  CLI::App* verb = app.add_subcommand(name, what);
  verb->footer("Example: " + example);
  verb->fallthrough();  // --api and --json may stand after the verb
  return verb;
}

void add_vm(CLI::App* verb, std::string* vm) {
  verb->add_option("VM", *vm, "Name of the guest")->required()->check([](const std::string& name) {
    return is_name(name) ? std::string() : "guest name '" + name + "' must be " + kNameRule;
  });
}

CLI::Option* add_dry_run(CLI::App* verb, bool* dry_run) {
  return verb->add_flag("--dry-run", *dry_run,
                        "Check what can be checked, say what would be done, change nothing");
}

CLI::Option* add_duration(CLI::App* verb, const std::string& flags, const std::function<void(Duration)>& take,
                          Duration low, Duration high, const std::string& what) {
  const auto parse = [=](const std::string& text) {
    const auto parsed = parse_duration(text);
    if (!parsed.ok()) throw CLI::ValidationError(flags, parsed.status().message());
    if (*parsed < low || *parsed > high) {
      throw CLI::ValidationError(flags, text + " is out of range; it must be from " + format_duration(low) +
                                            " to " + format_duration(high));
    }
    take(*parsed);
  };
  return verb->add_option_function<std::string>(flags, parse, what)->type_name("DURATION");
}

std::string guest_url(const std::string& vm, const std::string& verb) {
  return "/v1/guests/" + vm + (verb.empty() ? "" : "/" + verb);
}

int tell_failure(const Reply& reply) {
  std::string line = reply.status.message();
  for (char& c : line) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  std::fprintf(stderr, "remusd: %s\n", line.c_str());
  return exit_code(api_code(reply));
}

int act(const CliContext& context, const std::string& vm, const std::string& verb,
        const nlohmann::json& arguments, const std::string& said) {
  const Reply reply = context.client().post(guest_url(vm, verb), arguments);
  if (!reply.status.ok()) return tell_failure(reply);
  if (context.json) {
    print_json(reply.body);
  } else if (reply.body.contains("would")) {
    std::printf("would %s\n", reply.body.value("would", "").c_str());
  } else {
    std::printf("%s\n", said.c_str());
  }
  return kDone;
}

void print_json(const nlohmann::json& json) {
  std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
}

}  // namespace remusd::control
