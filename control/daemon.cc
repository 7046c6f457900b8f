// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/daemon.h"

#include <signal.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <cstdlib>
#include <filesystem>

#include "ckpt/link.h"
#include "control/guest_file.h"
#include "control/guest_state_file.h"
#include "control/http_metrics.h"
#include "control/local_api.h"
#include "control/log.h"
#include "control/notify.h"
#include "control/pace.h"
#include "control/toml_reader.h"
#include "guest/awake_processor.h"

namespace remusd::control {
namespace {

namespace asio = boost::asio;

constexpr size_t kWorkers = 8;
constexpr std::chrono::milliseconds kPollInterval{200};
constexpr int kMaxBenchCount = 10000;
constexpr double kDefaultStopPatienceMs = 60e3;

Status make_directory(const std::string& path, std::filesystem::perms mode) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(path, error);
  if (error) return {Code::io, "create directory " + path + ": " + error.message()};
  if (made) std::filesystem::permissions(path, mode, error);
  return {};
}

Result<std::unique_ptr<arbiter::Arbiter>> open_arbiter(const Config& config) {
  if (config.arbiter_kind == "etcd") return arbiter::open_etcd_arbiter(config.etcd);
  REMUSD_TRY(make_directory(config.arbiter_directory, std::filesystem::perms::owner_all));
  return arbiter::open_file_arbiter(config.arbiter_directory);
}

// Arguments come from anybody who may use the API: wrong types are told, never thrown.
template <typename T>
Result<T> argument(const nlohmann::json& arguments, const char* name, const T& otherwise) {
  const auto found = arguments.find(name);
  if (found == arguments.end()) return otherwise;
  bool fits = false;
  if constexpr (std::is_same_v<T, bool>) fits = found->is_boolean();
  if constexpr (std::is_same_v<T, double>) fits = found->is_number();
  if constexpr (std::is_same_v<T, int>) fits = found->is_number_integer();
  if constexpr (std::is_same_v<T, std::string>) fits = found->is_string();
  if (!fits) return Status(Code::invalid, "argument '" + std::string(name) + "' has the wrong type");
  return found->template get<T>();
}

Duration from_ms(double ms) {
  const double bounded = std::min(std::max(ms, 0.0), 1e9);
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double, std::milli>(bounded));
}

using Work = std::function<Reply(GuestHost&)>;

// Checks the arguments of a command; the work itself runs on the guest's strand.
Result<Work> make_work(const Config& config, const std::string& verb, const nlohmann::json& arguments) {
  REMUSD_ASSIGN(const bool dry_run, argument(arguments, "dry_run", false));
  if (verb == "stop") {
    REMUSD_ASSIGN(const bool graceful, argument(arguments, "graceful", false));
    REMUSD_ASSIGN(const double ms, argument(arguments, "timeout_ms", kDefaultStopPatienceMs));
    return Work([=](GuestHost& host) { return host.stop(graceful, from_ms(ms), dry_run); });
  }
  if (verb == "protect") {
    REMUSD_ASSIGN(const std::string peer, argument(arguments, "peer", std::string()));
    REMUSD_ASSIGN(const primary::PaceOptions pace, make_pace(config, arguments));
    return Work([=](GuestHost& host) { return host.protect(peer, pace, dry_run); });
  }
  if (verb == "unprotect") {
    REMUSD_ASSIGN(const bool force, argument(arguments, "force", false));
    if (force) return Work([=](GuestHost& host) { return host.force_unprotect(dry_run); });
    REMUSD_ASSIGN(const std::string reason,
                  argument(arguments, "reason", std::string("unprotected by command")));
    return Work([=](GuestHost& host) { return host.unprotect(reason, dry_run); });
  }
  if (verb == "failover") {
    REMUSD_ASSIGN(const bool force, argument(arguments, "force", false));
    return Work(
        [=](GuestHost& host) { return force ? host.force_failover(dry_run) : host.failover(dry_run); });
  }
  if (verb == "switchover") return Work([=](GuestHost& host) { return host.switchover(dry_run); });
  if (verb == "resync") {
    REMUSD_ASSIGN(const bool verify, argument(arguments, "verify", false));
    return Work([=](GuestHost& host) { return verify ? host.verify_disks(dry_run) : host.resync(dry_run); });
  }
  if (verb == "bench-floor") {
    REMUSD_ASSIGN(const int count, argument(arguments, "count", 200));
    if (count < 1 || count > kMaxBenchCount) {
      return Status(Code::invalid, "count must be from 1 to " + std::to_string(kMaxBenchCount));
    }
    return Work([=](GuestHost& host) { return host.bench_floor(count); });
  }
  return Status(Code::invalid, "unknown command '" + verb + "'");
}

}  // namespace

Daemon::Daemon(Config config)
    : config_(std::move(config)),
      loop_(1),
      metrics_(config_.node),
      residues_(std::chrono::seconds(config_.residue_s),
                [this](const std::string& vm, uint64_t bytes) { metrics_.set_residue(vm, bytes); }),
      pool_(kWorkers),
      signals_(loop_, SIGTERM, SIGINT),
      reload_(loop_, SIGHUP),
      poll_timer_(loop_),
      watchdog_timer_(loop_) {}

Daemon::~Daemon() {
  pool_.join();
}

Result<std::unique_ptr<Daemon>> Daemon::open(Config config) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(config)));
  REMUSD_TRY(daemon->open_all());
  return daemon;
}

Status Daemon::open_all() {
  using std::filesystem::perms;
  REMUSD_ASSIGN(tls_, PeerTls::open(config_));
  REMUSD_TRY(make_directory(config_.state_dir, perms::owner_all));
  REMUSD_TRY(make_directory(config_.state_dir + "/files", perms::owner_all));
  REMUSD_TRY(make_directory(config_.state_dir + "/guests", perms::owner_all));
  REMUSD_TRY(make_directory(config_.runtime_dir, perms::owner_all));
  REMUSD_TRY(make_directory(std::filesystem::path(config_.api).parent_path().string(), perms::owner_all));
  REMUSD_ASSIGN(arbiter_, open_arbiter(config_));
  metrics_.set_limit("staging", static_cast<double>(config_.staging_mib) * 1048576);
  metrics_.set_limit("shadow", static_cast<double>(config_.shadow_mib) * 1048576);
  metrics_.set_limit("packets", static_cast<double>(config_.packet_buffer_mib) * 1048576);
  const ckpt::LinkOptions link;
  metrics_.set_limit("link", static_cast<double>(ckpt::link_memory_bytes(link, !config_.insecure)));
  context_ = std::make_unique<HostContext>(HostContext{config_, *arbiter_, metrics_, residues_, *tls_,
                                                       pool_.get_executor(),
                                                       [this](GuestHost& host) { retired(host); }});
  inherit_guests();
  REMUSD_ASSIGN(api_, HttpServer::listen_unix(loop_, config_.api, make_local_api(*this)));
  if (!config_.metrics.empty()) {
    REMUSD_ASSIGN(web_, HttpServer::listen_tcp(loop_, config_.metrics, make_http_metrics(*this)));
  }
  REMUSD_ASSIGN(peers_, PeerListener::start(loop_, pool_.get_executor(), config_, *arbiter_, *tls_,
                                            [this](const std::string& vm) { return find_or_make(vm); }));
  return {};
}

// Before anybody can ask for anything: what an earlier daemon left is looked at first.
void Daemon::inherit_guests() {
  guest::give_back_processors(config_.runtime_dir);
  for (const std::string& vm : saved_guests(config_.state_dir, kMaxGuests)) {
    auto left = load_guest_state(config_.state_dir, vm);
    if (!left.ok()) {
      log(LogLevel::error, {vm}, "not taken over: " + left.status().message());
    } else if (auto host = find_or_make(vm); host.ok()) {
      (*host)->inherit(*std::move(left));
    }
  }
}

void Daemon::run() {
  ::signal(SIGPIPE, SIG_IGN);
  signals_.async_wait([this](boost::system::error_code error, int) {
    if (!error) stop();
  });
  await_reload();
  tls_->begin(metrics_);
  poll_guests();
  feed_watchdog();
  log(LogLevel::info, {}, "node " + config_.node + " serves on " + config_.api + ", remusd " REMUSD_VERSION);
  notify_service_manager("READY=1\nSTATUS=serving");
  const auto busy = boost::asio::make_work_guard(loop_);  // stop() decides when it ends, not idleness
  loop_.run();
  pool_.join();
  const std::lock_guard lock(mutex_);
  if (!clean_)
    std::_Exit(0);  // A protection still asks the arbiter; what it borrows must not be taken from it.
}

void Daemon::await_reload() {
  reload_.async_wait([this](boost::system::error_code error, int) {
    if (error) return;
    log(LogLevel::info, {}, "SIGHUP: keys are read again; the configuration is read at start only");
    tls_->reload();
    await_reload();
  });
}

void Daemon::poll_guests() {
  tls_->watch();
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, host] : hosts_) {
      asio::post(host->strand(), [host = host] { host->poll(); });
    }
  }
  asio::post(pool_, [this] { residues_.expire(Clock::now()); });
  poll_timer_.expires_after(kPollInterval);
  poll_timer_.async_wait([this](boost::system::error_code error) {
    if (!error && !stopping_) poll_guests();
  });
}

void Daemon::feed_watchdog() {
  const auto interval = watchdog_interval();
  if (!interval) return;
  notify_service_manager("WATCHDOG=1");
  watchdog_timer_.expires_after(*interval);
  watchdog_timer_.async_wait([this](boost::system::error_code error) {
    if (!error) feed_watchdog();
  });
}

std::shared_ptr<GuestHost> Daemon::find(const std::string& vm) const {
  const std::lock_guard lock(mutex_);
  const auto found = hosts_.find(vm);
  return found == hosts_.end() ? nullptr : found->second;
}

Result<std::shared_ptr<GuestHost>> Daemon::find_or_make(const std::string& vm) {
  const std::lock_guard lock(mutex_);
  const auto found = hosts_.find(vm);
  if (found != hosts_.end()) return found->second;
  if (hosts_.size() >= kMaxGuests) {
    return Status(Code::exhausted,
                  "node '" + config_.node + "' already has " + std::to_string(kMaxGuests) + " guests");
  }
  auto host = std::make_shared<GuestHost>(vm, *context_);
  hosts_[vm] = host;
  return host;
}

void Daemon::retired(GuestHost& host) {
  const std::lock_guard lock(mutex_);
  const auto found = hosts_.find(host.name());
  if (found != hosts_.end() && found->second.get() == &host) hosts_.erase(found);
}

nlohmann::json Daemon::list() const {
  std::map<std::string, std::shared_ptr<GuestHost>> hosts;
  {
    const std::lock_guard lock(mutex_);
    hosts = hosts_;
  }
  nlohmann::json guests = nlohmann::json::array();
  for (const auto& [name, host] : hosts) guests.push_back(to_json(host->status()));
  return {{"schema_version", kSchemaVersion}, {"guests", std::move(guests)}};
}

Result<GuestStatus> Daemon::status(const std::string& vm) const {
  if (const auto host = find(vm)) return host->status();
  std::error_code ignored;
  if (is_name(vm) && std::filesystem::exists(config_.guests_dir + "/" + vm + ".toml", ignored)) {
    GuestStatus stopped;
    stopped.vm = vm;
    stopped.node = config_.node;
    stopped.residue_bytes = residues_.bytes(vm);
    return stopped;
  }
  return Status(Code::not_found, "no guest named '" + vm + "' on node '" + config_.node +
                                     "': it does not run here, is no " + "replica here, and " +
                                     config_.guests_dir + " does not define it");
}

void Daemon::command(const std::string& vm, const std::string& verb, const nlohmann::json& arguments,
                     std::function<void(Reply)> done) {
  if (stopping_) return done(Status(Code::unavailable, verb + " " + vm + ": the daemon is being stopped"));
  if (verb == "start") return command_start(vm, arguments, std::move(done));
  auto work = make_work(config_, verb, arguments);
  if (!work.ok()) return done(work.status().with_context(vm));
  const auto host = find(vm);
  if (host == nullptr) {
    const auto known = status(vm);
    if (!known.ok()) return done(known.status());
    return done(
        Status(Code::unavailable, verb + " " + vm + ": it does not run here (stopped); start it first"));
  }
  asio::post(host->strand(), [host, work = *std::move(work), done = std::move(done)] { done(work(*host)); });
}

void Daemon::command_start(const std::string& vm, const nlohmann::json& arguments,
                           std::function<void(Reply)> done) {
  const auto dry_run = argument(arguments, "dry_run", false);
  if (!dry_run.ok()) return done(dry_run.status());
  const auto force = argument(arguments, "force", false);
  if (!force.ok()) return done(force.status());
  if (!is_name(vm)) return done(Status(Code::invalid, "guest name '" + vm + "' must be " + kNameRule));
  Result<guest::Definition> definition = Status(Code::not_found, "");
  if (const auto given = arguments.find("definition"); given != arguments.end()) {
    definition = guest::definition_from_json(given->dump());
    if (definition.ok()) {
      if (Status valid = guest::complete_and_validate(&*definition); !valid.ok()) definition = valid;
    }
  } else {
    const std::string path = config_.guests_dir + "/" + vm + ".toml";
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored)) {
      return done(Status(Code::not_found, "start " + vm + ": no such guest, there is no " + path));
    }
    definition = load_guest_file(path);
  }
  if (!definition.ok()) return done(definition.status());
  if (definition->name != vm) {
    return done(
        Status(Code::invalid, "start " + vm + ": the definition is named '" + definition->name + "'"));
  }
  auto host = find_or_make(vm);
  if (!host.ok()) return done(host.status().with_context("start " + vm));
  asio::post((*host)->strand(),
             [host = *host, definition = *std::move(definition), force = *force, dry_run = *dry_run,
              done = std::move(done)] { done(host->start(definition, force, dry_run)); });
}

void Daemon::stop() {
  if (stopping_) return;
  stopping_ = true;
  log(LogLevel::info, {}, "stopping: protections end in order, guests go on");
  notify_service_manager("STOPPING=1");
  poll_timer_.cancel();
  reload_.cancel();
  api_->stop();
  if (web_ != nullptr) web_->stop();
  peers_->stop([this] { asio::post(loop_, [this] { stop_hosts(); }); });
}

void Daemon::stop_hosts() {
  const std::lock_guard lock(mutex_);
  const auto left = std::make_shared<std::atomic<size_t>>(hosts_.size());
  if (hosts_.empty()) return loop_.stop();
  for (const auto& [name, host] : hosts_) {
    asio::post(host->strand(), [this, left, host = host] {
      const bool clean = host->shut_down();
      {
        const std::lock_guard guard(mutex_);
        clean_ = clean_ && clean;
      }
      if (left->fetch_sub(1) == 1) loop_.stop();
    });
  }
}

}  // namespace remusd::control
