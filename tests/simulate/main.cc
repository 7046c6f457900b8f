// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Runs seeds, one after the other, each a whole life of a pair under its own faults (cluster.h).
#include <signal.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/simulate/cluster.h"

namespace remusd::simulate {
namespace {

constexpr size_t kTraceLines = 400;

struct Options {
  uint64_t seeds = 1000;
  uint64_t start = 0;
  Plant plant = Plant::none;
  bool json = false, trace = false, list_plants = false, help = false;
};

constexpr char kHelp[] =
    "usage: simulate [--seeds N] [--start S] [--json] [--plant NAME] [--trace]\n"
    "       simulate --list-plants\n"
    "\n"
    "Runs both sides' state machines, the network, arbiter, guest, disk and client under virtual time.\n"
    "  --seeds N      how many seeds (default 1000)\n"
    "  --start S      the first of them (default 0)\n"
    "  --json         prints one line of JSON at the end\n"
    "  --plant NAME   with a deliberate defect, which must be found\n"
    "  --trace        prints everything that happens, also without a violation\n"
    "  --list-plants  prints the defects, one a line\n"
    "Exits 1 at the first violation, with its seed, what is wrong and what went before. 2: wrong usage.\n";

/// What a failing assertion of the code under test interrupts.
uint64_t current_seed = 0;
std::string* current_trace = nullptr;

void write_all(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t wrote = ::write(STDERR_FILENO, data, size);
    if (wrote <= 0) return;
    data += wrote;
    size -= static_cast<size_t>(wrote);
  }
}

void on_abort(int) {
  if (current_trace != nullptr) write_all(current_trace->data(), current_trace->size());
  char line[160];
  const int size = std::snprintf(line, sizeof line,
                                 "seed %" PRIu64 ": an assertion failed; simulate --start %" PRIu64
                                 " --seeds 1 --trace "
                                 "shows the way there\n",
                                 current_seed, current_seed);
  write_all(line, static_cast<size_t>(size));
  ::_exit(1);
}

bool to_number(const char* text, uint64_t* number) {
  char* end = nullptr;
  *number = std::strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && *end == '\0';
}

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--json") {
      options->json = true;
    } else if (flag == "--trace") {
      options->trace = true;
    } else if (flag == "--list-plants") {
      options->list_plants = true;
    } else if (flag == "--help" || flag == "-h") {
      options->help = true;
    } else if (flag == "--seeds" || flag == "--start") {
      if (!to_number(value, flag == "--seeds" ? &options->seeds : &options->start)) return false;
      ++i;
    } else if (flag == "--plant") {
      const auto plant = find_plant(value);
      if (!plant) return false;
      options->plant = *plant;
      ++i;
    } else {
      return false;
    }
  }
  return true;
}

void print_tail(const std::string& trace) {
  size_t lines = 0, at = trace.size();
  while (at > 0 && lines <= kTraceLines) {
    if (trace[--at] == '\n') ++lines;
  }
  if (at > 0) std::printf("... (--trace prints what came before)\n");
  std::fwrite(trace.data() + (at > 0 ? at + 1 : 0), 1, trace.size() - (at > 0 ? at + 1 : 0), stdout);
}

void add(const Stats& one, Stats* all) {
  all->failovers += one.failovers;
  all->partitions += one.partitions;
  all->crashes += one.crashes;
  all->freezes += one.freezes;
  all->epochs += one.epochs;
  all->passes += one.passes;
  all->fences += one.fences;
  all->guests_lost += one.guests_lost;
  all->switchovers += one.switchovers;
  all->loads_failed += one.loads_failed;
  all->disk_failures += one.disk_failures;
  all->guest_disk_errors += one.guest_disk_errors;
  all->replays += one.replays;
  all->corruptions += one.corruptions;
  all->resets += one.resets;
  all->ambiguous += one.ambiguous;
  all->events += one.events;
  all->requests += one.requests;
}

/// The seed again, with its trace: it takes the same way.
void tell(uint64_t seed, const Options& options, const std::string& why) {
  std::string trace;
  Cluster again(seed, options.plant, &trace);
  again.run();
  if (options.trace) {
    std::fwrite(trace.data(), 1, trace.size(), stdout);
  } else {
    print_tail(trace);
  }
  std::printf("seed %" PRIu64 ": %s\n", seed, why.c_str());
  if (again.world().why() != why) {
    std::printf("seed %" PRIu64 ": NOT REPLAYABLE, the second run says: %s\n", seed,
                again.world().why().c_str());
  }
}

int run(const Options& options) {
  Stats all;
  uint64_t digest = 0, done = 0;
  std::string why, trace;
  current_trace = options.trace ? &trace : nullptr;
  for (; done < options.seeds && why.empty(); ++done) {
    current_seed = options.start + done;
    trace.clear();
    Cluster cluster(current_seed, options.plant, options.trace ? &trace : nullptr);
    cluster.run();
    add(cluster.world().stats(), &all);
    digest = digest * 0x9e3779b97f4a7c15 + cluster.world().digest();
    why = cluster.world().why();
    if (why.empty() && options.trace) std::fwrite(trace.data(), 1, trace.size(), stdout);
  }
  current_trace = nullptr;
  if (!why.empty()) tell(current_seed, options, why);
  if (options.json) {
    std::printf("{\"seeds\":%" PRIu64 ",\"violations\":%d,\"failovers\":%" PRIu64 ",\"partitions\":%" PRIu64
                ",\"crashes\":%" PRIu64 ",\"epochs\":%" PRIu64 ",\"freezes\":%" PRIu64 ",\"passes\":%" PRIu64
                ",\"fences\":%" PRIu64 ",\"guests_lost\":%" PRIu64 ",\"switchovers\":%" PRIu64
                ",\"loads_failed\":%" PRIu64 ",\"corruptions\":%" PRIu64 ",\"resets\":%" PRIu64
                ",\"ambiguous\":%" PRIu64 ",\"disk_failures\":%" PRIu64 ",\"guest_disk_errors\":%" PRIu64
                ",\"replays\":%" PRIu64 ",\"requests\":%" PRIu64 ",\"events\":%" PRIu64
                ",\"digest\":\"%016" PRIx64 "\"}\n",
                done, why.empty() ? 0 : 1, all.failovers, all.partitions, all.crashes, all.epochs,
                all.freezes, all.passes, all.fences, all.guests_lost, all.switchovers, all.loads_failed,
                all.corruptions, all.resets, all.ambiguous, all.disk_failures, all.guest_disk_errors,
                all.replays, all.requests, all.events, digest);
  } else if (why.empty()) {
    std::printf("%" PRIu64 " seeds, no violation: %" PRIu64 " epochs, %" PRIu64 " failovers, %" PRIu64
                " crashes, %" PRIu64 " partitions\n",
                done, all.epochs, all.failovers, all.crashes, all.partitions);
  }
  return why.empty() ? 0 : 1;
}

}  // namespace
}  // namespace remusd::simulate

int main(int argc, char** argv) {
  using namespace remusd::simulate;
  Options options;
  if (!parse(argc, argv, &options)) {
    std::fputs(kHelp, stderr);
    return 2;
  }
  if (options.help) {
    std::fputs(kHelp, stdout);
    return 0;
  }
  if (options.list_plants) {
    for (const PlantName& entry : plant_names()) {
      std::printf("%.*s\n", static_cast<int>(entry.name.size()), entry.name.data());
    }
    return 0;
  }
  ::signal(SIGABRT, on_abort);
  return run(options);
}
