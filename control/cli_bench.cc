// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The verb bench.
#include <cstdio>

#include "control/cli.h"

namespace remusd::control {
namespace {

constexpr std::chrono::milliseconds kSpacing{25};

int bench_floor(const CliContext& context, const std::string& vm, int count) {
  const Duration limit = count * kSpacing * 4 + std::chrono::seconds(30);
  const Reply reply = context.client().post(guest_url(vm, "bench-floor"), {{"count", count}}, limit);
  if (!reply.status.ok()) return tell_failure(reply);
  if (context.json) {
    print_json(reply.body);
  } else {
    const nlohmann::json pause = reply.body.value("pause_ms", nlohmann::json::object());
    std::printf("%s: stop + save + cont %d times: p50 %.3f ms, p99 %.3f ms, max %.3f ms\n", vm.c_str(), count,
                pause.value("p50", 0.0), pause.value("p99", 0.0), pause.value("max", 0.0));
  }
  return kDone;
}

}  // namespace

void add_bench(CLI::App& app, CliContext& context) {
  struct Flags {
    std::string vm;
    int count = 200;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* bench = add_verb(app, "bench", "Measure on a live guest", "remusd bench floor vm1 --count 200");
  bench->require_subcommand(1);
  CLI::App* verb = add_verb(
      *bench, "floor", "The pause of stop, save and cont alone, every 25 ms, on a running unprotected guest",
      "remusd bench floor vm1 --count 200 --json");
  add_vm(verb, &flags->vm);
  verb->add_option("--count", flags->count, "How many pauses")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  verb->callback([flags, &context] {
    context.action = [flags, &context] { return bench_floor(context, flags->vm, flags->count); };
  });
}

}  // namespace remusd::control
