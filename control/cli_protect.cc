// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The verbs protect and unprotect.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <thread>

#include "control/cli.h"
#include "control/config.h"
#include "control/duration.h"

namespace remusd::control {
namespace {

constexpr double kMib = 1048576.0, kPageMib = 4096.0 / kMib;

// Tells how far the first sync is: one line that is rewritten on a terminal, a line for each step in a pipe.
class Progress {
 public:
  Progress(FILE* out, bool quiet) : out_(out), quiet_(quiet), terminal_(::isatty(::fileno(out)) == 1) {}

  void show(const std::string& vm, const nlohmann::json& status) {
    if (quiet_) return;
    const std::string state = status.value("state", "");
    const nlohmann::json sync = status.value("sync", nlohmann::json::object());
    double sent = kPageMib * sync.value("sent_pages", 0.0), total = kPageMib * sync.value("total_pages", 0.0);
    // Disks come first, and take longest.
    const nlohmann::json disks =
        status.value("disks", nlohmann::json::object()).value("sync", nlohmann::json::object());
    const double disk_mib = disks.value("total_bytes", 0.0) / kMib;
    if (const double looked_at = disks.value("copied_bytes", 0.0) / kMib; looked_at < disk_mib) {
      sent = looked_at;
      total = disk_mib;
    }
    const int percent = total > 0 ? static_cast<int>(std::min(100.0, 100 * sent / total)) : 0;
    if (!terminal_ && state == state_ && percent / 10 == percent_ / 10) return;
    if (terminal_ && state == state_ && percent == percent_) return;
    if (state != state_) began_ = Clock::now();
    state_ = state;
    percent_ = percent;
    std::string line = vm + ": " + state;
    if (state == "syncing" && total > 0) line += detail(sent, total, percent);
    std::fprintf(out_, terminal_ ? "\r\033[K%s" : "%s\n", line.c_str());
    std::fflush(out_);
    shown_ = true;
  }

  void end() const {
    if (terminal_ && shown_) std::fprintf(out_, "\r\033[K");
  }

 private:
  std::string detail(double sent, double total, int percent) const {
    const double seconds = to_seconds(Clock::now() - began_);
    const double rate = seconds > 0.05 ? sent / seconds : 0;  // MiB a second
    std::string text = " " + std::to_string(percent) + "%";
    if (rate > 0) {
      text += ", " + std::to_string(static_cast<int>(rate)) + " MiB/s, " +
              format_duration(std::chrono::duration_cast<Duration>(
                  std::chrono::duration<double>(std::max(0.0, total - sent) / rate))) +
              " left";
    }
    return text;
  }

  FILE* out_;
  bool quiet_, terminal_;
  bool shown_ = false;
  std::string state_;
  int percent_ = -1;
  Time began_ = Clock::now();
};

struct ProtectFlags {
  std::string vm, peer;
  std::optional<Duration> epoch, latency_target, epoch_min;  // none: the daemon's setting
  std::optional<double> max_slowdown;
  Duration timeout = std::chrono::seconds(120);
  bool dry_run = false;
};

// What it means that our protection is no longer under way.
int tell_end(const std::string& vm, const nlohmann::json& status) {
  const std::string reason = status.value("reason", "");
  const Code code = code_from_string(status.value("reason_code", "")).value_or(Code::io);
  const std::string message = "protect " + vm + ": failed, the guest is " + status.value("state", "?") +
                              ": " + (reason.empty() ? "no reason given" : reason);
  // not_found and invalid would read as "no such guest" and "usage": neither is what happened.
  const bool plain = code == Code::ok || code == Code::not_found || code == Code::invalid;
  return tell_failure(Status(plain ? Code::io : code, message));
}

int protect(const CliContext& context, const ProtectFlags& flags) {
  nlohmann::json arguments{{"peer", flags.peer}, {"dry_run", flags.dry_run}};
  const auto give = [&](const char* name, const std::optional<Duration>& value) {
    if (value) arguments[name] = to_ms(*value);
  };
  give("epoch_ms", flags.epoch);
  give("latency_target_ms", flags.latency_target);
  give("epoch_min_ms", flags.epoch_min);
  if (flags.max_slowdown) arguments["max_slowdown"] = *flags.max_slowdown;
  if (flags.dry_run) return act(context, flags.vm, "protect", arguments, "");
  const Time deadline = Clock::now() + flags.timeout;
  const ApiClient client = context.client();
  const Reply begun = client.post(guest_url(flags.vm, "protect"), arguments);
  if (!begun.status.ok()) return tell_failure(begun);
  const auto ours = begun.body.value("protection_id", uint64_t{0});
  Progress progress(context.json ? stderr : stdout, context.json && ::isatty(STDERR_FILENO) == 0);
  while (true) {
    const Reply now = client.get(guest_url(flags.vm));
    if (!now.status.ok()) {
      progress.end();
      return tell_failure(now);
    }
    const std::string state = now.body.value("state", "");
    if (now.body.value("protection_id", uint64_t{0}) != ours) {
      progress.end();
      return tell_failure(
          Status(Code::io, "protect " + flags.vm + ": somebody else began another protection"));
    }
    progress.show(flags.vm, now.body);
    if (state == "protected") {
      progress.end();
      if (context.json) {
        print_json(now.body);
      } else {
        std::printf("%s is protected by node %s (generation %llu, epochs of %g ms)\n", flags.vm.c_str(),
                    now.body.value("peer", "").c_str(),
                    static_cast<unsigned long long>(now.body.value("generation", uint64_t{0})),
                    now.body.value("epoch_ms", 0.0));
      }
      return kDone;
    }
    if (state != "connecting" && state != "syncing" && state != "deciding" && state != "frozen") {
      progress.end();
      return tell_end(flags.vm, now.body);
    }
    if (Clock::now() >= deadline) {
      progress.end();
      const nlohmann::json reason{{"reason", "protect gave up after " + format_duration(flags.timeout)}};
      const Reply undone = client.post(guest_url(flags.vm, "unprotect"), reason);
      return tell_failure(
          Status(Code::timed_out,
                 "protect " + flags.vm + ": not protected within " + format_duration(flags.timeout) + " (" +
                     state + "), given up" +
                     (undone.status.ok() || undone.unprotected ? "" : "; " + undone.status.message())));
    }
    std::this_thread::sleep_for(kLook);
  }
}

}  // namespace

void add_protect(CLI::App& app, CliContext& context) {
  const auto flags = std::make_shared<ProtectFlags>();
  CLI::App* verb = add_verb(
      app, "protect", "Protect a running guest by a peer; returns once the first checkpoint is acknowledged",
      "remusd protect vm1 --peer b --epoch 25ms --timeout 120s");
  add_vm(verb, &flags->vm);
  verb->add_option("--peer", flags->peer, "Node that keeps the replica, as in [peer.NAME]")->required();
  add_duration(verb, "--epoch", &flags->epoch, std::chrono::milliseconds(kEpochMinMs),
               std::chrono::milliseconds(kEpochMaxMs),
               "Interval between checkpoints, 2ms to 1s (default: configured)");
  add_duration(verb, "--latency-target", &flags->latency_target, Duration::zero(),
               std::chrono::milliseconds(kEpochMaxMs),
               "End an epoch early so that output leaves within this (default: configured; 0ms: never)");
  add_duration(verb, "--epoch-min", &flags->epoch_min, std::chrono::microseconds(500),
               std::chrono::milliseconds(kEpochMaxMs),
               "Least time between checkpoints when output ends epochs early, 500us to 1s");
  verb->add_option_function<std::string>(
          "--max-slowdown",
          [flags](const std::string& text) {
            char* end = nullptr;
            const double percent = std::strtod(text.c_str(), &end);
            if (end == text.c_str() || std::string_view(end) != "%" || !(percent >= 0 && percent <= 90)) {
              throw CLI::ValidationError("--max-slowdown", "'" + text + "' is not a share from 0% to 90%");
            }
            flags->max_slowdown = percent / 100;
          },
          "Make epochs rarer so that they cost the guest at most this share of its time, such as 10%")
      ->type_name("PERCENT");
  add_duration(verb, "--timeout", &flags->timeout, std::chrono::milliseconds(100), std::chrono::hours(24),
               "Give up, and undo, after this long (default 120s)");
  add_dry_run(verb, &flags->dry_run);
  verb->callback(
      [flags, &context] { context.action = [flags, &context] { return protect(context, *flags); }; });
}

void add_unprotect(CLI::App& app, CliContext& context) {
  struct Flags {
    std::string vm;
    bool dry_run = false, force = false;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, "unprotect", "End a guest's protection in order; the guest runs on",
                            "remusd unprotect vm1");
  add_vm(verb, &flags->vm);
  verb->add_flag(
      "--force", flags->force,
      "While its backup and the arbiter are both out of reach: let the guest go on alone. DANGER: if "
      "the backup lives and wins the right to run, the guest runs twice");
  add_dry_run(verb, &flags->dry_run);
  verb->callback([flags, &context] {
    context.action = [flags, &context] {
      return act(context, flags->vm, "unprotect", {{"dry_run", flags->dry_run}, {"force", flags->force}},
                 flags->vm + " is unprotected");
    };
  });
}

}  // namespace remusd::control
