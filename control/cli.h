// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The command line: a table of verbs, each registered by its own function in cli_*.cc. Parsing only fills
// plain fields; the verb's action runs afterwards and returns the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <functional>
#include <string>

#include "control/api_client.h"
#include "control/exit_code.h"

namespace remusd::control {

struct CliContext {
  std::string api;    // socket of the daemon
  bool json = false;  // machine-readable output, with schema_version
  std::function<int()> action;

  ApiClient client() const { return ApiClient(api); }
};

/// Parses and runs; returns the process's exit code.
int run_command_line(int argc, const char* const* argv);

// The verbs.
void add_serve(CLI::App& app, CliContext& context);
void add_start(CLI::App& app, CliContext& context);
void add_stop(CLI::App& app, CliContext& context);
void add_protect(CLI::App& app, CliContext& context);
void add_unprotect(CLI::App& app, CliContext& context);
void add_failover(CLI::App& app, CliContext& context);
void add_switchover(CLI::App& app, CliContext& context);
void add_resync(CLI::App& app, CliContext& context);
void add_list(CLI::App& app, CliContext& context);
void add_status(CLI::App& app, CliContext& context);
void add_wait(CLI::App& app, CliContext& context);
void add_bench(CLI::App& app, CliContext& context);
void add_keys(CLI::App& app, CliContext& context);

// What verbs share.

/// How often a verb that waits looks again.
inline constexpr std::chrono::milliseconds kLook{50};

/// Adds a sub-command whose help ends with `example`.
CLI::App* add_verb(CLI::App& app, const std::string& name, const std::string& what,
                   const std::string& example);
/// The positional VM, checked for form so that it may stand in a URL.
void add_vm(CLI::App* verb, std::string* vm);
CLI::Option* add_dry_run(CLI::App* verb, bool* dry_run);
/// A duration from `low` to `high`; anything else is a usage error.
CLI::Option* add_duration(CLI::App* verb, const std::string& flags, const std::function<void(Duration)>& take,
                          Duration low, Duration high, const std::string& what);
template <typename Out>
CLI::Option* add_duration(CLI::App* verb, const std::string& flags, Out* out, Duration low, Duration high,
                          const std::string& what) {
  return add_duration(
      verb, flags, [out](Duration value) { *out = value; }, low, high, what);
}
std::string guest_url(const std::string& vm, const std::string& verb = "");

/// One line on stderr, and the exit code that belongs to the failure.
int tell_failure(const Reply& reply);
/// Sends an acting command; prints its outcome as JSON, or `said`, or what a dry run would do.
int act(const CliContext& context, const std::string& vm, const std::string& verb,
        const nlohmann::json& arguments, const std::string& said);
void print_json(const nlohmann::json& json);
void print_guest(const nlohmann::json& guest);
void print_table(const nlohmann::json& guests);

}  // namespace remusd::control
