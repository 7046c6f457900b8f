// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the engine can do without a hypervisor: both sides whole, over loopback TCP, with a simulated machine
// that runs one virtual millisecond between two checkpoints. Each epoch is taken as soon as the machine has
// run; the machine's own work is part of it.
//
//   engine_bench [--seconds N] [--dirty PAGES] [--interval-us N] [--tls ROUNDS]
//
// Prints one line of JSON: acknowledged epochs a second, and the medians of what an epoch cost. With --tls
// plain text and TLS alternate, so many times: the medians over the rounds, and of the ratios within each
// round.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>

#include "arbiter/arbiter.h"
#include "backup/session.h"
#include "bench/tls_pair.h"
#include "guest/sim/driver.h"
#include "guest/sim/machine.h"
#include "primary/protection.h"

namespace remusd {
namespace {

using guest::sim::SimMachine;

/// A simulated machine that runs only when it is resumed, for one step.
class SteppedGuest : public guest::Guest {
 public:
  SteppedGuest(guest::Facts facts, SimMachine machine)
      : facts_(std::move(facts)), machine_(std::move(machine)) {}

  const guest::Facts& facts() const override { return facts_; }
  const std::vector<guest::NicEndpoint>& nics() const override { return nics_; }
  std::span<const std::byte> memory() const override { return machine_.memory(); }
  int pid() const override { return 0; }
  Status start_tracking() override {
    machine_.mark_populated_dirty();
    return {};
  }
  Status stop_tracking() override { return {}; }
  std::string tracker_name() const override { return "sim"; }
  Status collect_dirty(PageSet* dirty) override {
    machine_.collect_dirty(dirty);
    merge_pages(assumed_, dirty);
    return {};
  }
  void assume_written(const PageSet& pages) override { assumed_ = pages; }
  Status pause() override {
    machine_.step(1);
    return {};
  }
  Result<std::span<const std::byte>> save() override {
    machine_.save(&saved_);
    return std::span<const std::byte>(saved_);
  }
  Status resume() override { return {}; }
  Result<std::vector<std::byte>> base_stream() override { return machine_.base(); }
  Status destroy() override { return {}; }
  Status power_button() override { return {}; }
  std::vector<guest::Event> take_events() override { return {}; }
  Status announce() override { return {}; }

 private:
  const guest::Facts facts_;
  PageSet assumed_;
  const std::vector<guest::NicEndpoint> nics_;
  SimMachine machine_;
  std::vector<std::byte> saved_;
};

struct Settings {
  double seconds = 5;
  uint32_t dirty = 112;  // some are written twice: a median of somewhat more than 100 distinct pages
  int interval_us = 1;
  int tls_rounds = 0;
};

class Samples {
 public:
  void add(const EpochSample& sample) {
    const std::lock_guard lock(mutex_);
    samples_.push_back(sample);
    if (samples_.size() == 1) changed_.notify_all();
  }
  bool wait_first() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30), [this] { return !samples_.empty(); });
  }
  std::vector<EpochSample> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(samples_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<EpochSample> samples_;
};

Result<ScopedFd> listen_on_loopback(std::string* address) {
  ScopedFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  auto* generic = reinterpret_cast<sockaddr*>(&at);
  if (!listener || ::bind(listener.get(), generic, size) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), generic, &size) != 0)
    return Status::from_errno("listen on the loopback interface");
  *address = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
  return listener;
}

double median(const std::vector<EpochSample>& samples, double (*of)(const EpochSample&)) {
  std::vector<double> values;
  for (const EpochSample& sample : samples) values.push_back(of(sample));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double to_us(Duration duration) {
  return to_ms(duration) * 1e3;
}

/// `keys`: none for plain text.
Result<nlohmann::json> measure(const Settings& settings, const std::string& directory,
                               const ckpt::TlsPair* keys) {
  guest::Definition definition;
  definition.name = "sim1";
  definition.driver = "sim";
  definition.memory_mib = 64;
  definition.sim.dirty_pages_per_ms = settings.dirty;
  REMUSD_ASSIGN(SimMachine machine, SimMachine::boot(guest::sim::config_of(definition)));
  guest::DriverOptions driver;
  driver.runtime_dir = directory;
  REMUSD_ASSIGN(const auto model, guest::start(definition, driver));  // Its facts are the standby's.
  SteppedGuest guest(model->facts(), std::move(machine));
  REMUSD_TRY(model->destroy());
  REMUSD_ASSIGN(const auto net, netbuf::NetBuffer::start({}, {}, definition.name, /*holding=*/false));
  REMUSD_ASSIGN(const auto arbiter, arbiter::open_file_arbiter(directory));

  primary::Options ours;
  ours.node = "a";
  ours.peer = "b";
  REMUSD_ASSIGN(const ScopedFd listener, listen_on_loopback(&ours.peer_address));
  ours.pace.interval = std::chrono::microseconds(settings.interval_us);
  ours.heartbeat_lost = 100;
  if (keys != nullptr) ours.tls = keys->shared_near();
  Samples samples;
  primary::Callbacks callbacks;
  callbacks.on_epoch = [&](const EpochSample& sample) { samples.add(sample); };
  REMUSD_ASSIGN(const auto protection,
                primary::Protection::start(guest, definition, *net, *arbiter, ours, std::move(callbacks)));
  pollfd waiting{listener.get(), POLLIN, 0};
  if (::poll(&waiting, 1, 10000) != 1) return Status(Code::timed_out, "the primary does not connect");
  backup::Options theirs;
  theirs.node = "b";
  theirs.heartbeat_lost = 100;
  if (keys != nullptr) theirs.tls = keys->shared_far();
  theirs.driver = driver;
  theirs.files_dir = directory;
  REMUSD_ASSIGN(const auto session,
                backup::Session::start(ScopedFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)),
                                       *arbiter, theirs, {}));
  if (!samples.wait_first()) return protection->snapshot().end.with_context("the first epoch did not come");
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // Warm.
  (void)samples.take();
  const Time began = Clock::now();
  std::this_thread::sleep_for(std::chrono::duration<double>(settings.seconds));
  const std::vector<EpochSample> taken = samples.take();
  const double seconds = to_seconds(Clock::now() - began);
  if (protection->snapshot().state != primary::State::protecting || taken.empty())
    return protection->snapshot().end.with_context("protection ended");

  double raw = 0, sent = 0;
  for (const EpochSample& sample : taken) {
    raw += static_cast<double>(sample.raw_bytes);
    sent += static_cast<double>(sample.sent_bytes);
  }
  using Sample = EpochSample;
  return nlohmann::json{
      {"sim_epochs_per_s", static_cast<double>(taken.size()) / seconds},
      {"dirty_pages", median(taken, [](const Sample& s) { return static_cast<double>(s.dirty_pages); })},
      {"wire_ratio", sent / raw},
      {"machine_us", median(taken, [](const Sample& s) { return to_us(s.stop); })},
      {"pause_us", median(taken, [](const Sample& s) { return to_us(s.pause); })},
      {"encode_us", median(taken, [](const Sample& s) { return to_us(s.encode); })},
      {"commit_us", median(taken, [](const Sample& s) { return to_us(s.commit); })}};
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

Result<nlohmann::json> compare(const Settings& settings, const std::string& directory) {
  const ckpt::TlsPair keys;
  std::map<std::string, std::vector<double>> found;
  for (int round = 0; round < settings.tls_rounds; ++round) {
    nlohmann::json plain, tls;
    for (const bool with : {round % 2 == 0, round % 2 != 0}) {
      REMUSD_ASSIGN((with ? tls : plain), measure(settings, directory, with ? &keys : nullptr));
    }
    for (const char* figure : {"commit_us", "pause_us", "sim_epochs_per_s"}) {
      found[std::string("plain_") + figure].push_back(plain[figure].get<double>());
      found[std::string("tls_") + figure].push_back(tls[figure].get<double>());
    }
    found["tls_commit_ratio"].push_back(tls["commit_us"].get<double>() / plain["commit_us"].get<double>());
  }
  nlohmann::json result;
  for (auto& [figure, values] : found) result[figure] = median(std::move(values));
  return result;
}

}  // namespace
}  // namespace remusd

int main(int argc, char** argv) {
  remusd::Settings settings;
  CLI::App app("The checkpoint engine without a hypervisor: epochs a second over loopback TCP.");
  app.add_option("--seconds", settings.seconds, "How long to measure")->check(CLI::Range(0.1, 3600.0));
  app.add_option("--dirty", settings.dirty, "Page writes an epoch")->check(CLI::Range(1, 100000));
  app.add_option("--interval-us", settings.interval_us, "From one epoch to the next, at least")
      ->check(CLI::Range(1, 1000000));
  app.add_option("--tls", settings.tls_rounds, "Compare TLS with plain text, in so many rounds")
      ->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  std::string directory = "/tmp/remusd-engine-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) {
    std::perror("make a directory");
    return 1;
  }
  const auto result = settings.tls_rounds > 0 ? remusd::compare(settings, directory)
                                              : remusd::measure(settings, directory, nullptr);
  std::filesystem::remove_all(directory);
  if (!result.ok()) {
    std::fprintf(stderr, "engine_bench: %s\n", result.status().message().c_str());
    return 1;
  }
  std::printf("%s\n", result->dump().c_str());
  return 0;
}
