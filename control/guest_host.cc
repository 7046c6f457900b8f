// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/guest_host.h"

#include <signal.h>

#include <boost/asio/post.hpp>
#include <cerrno>

#include "control/duration.h"
#include "control/log.h"
#include "control/pace.h"

namespace remusd::control {
namespace {

// Ending in order may wait for the arbiter; beyond this the caller is told that it still goes on.
constexpr std::chrono::seconds kEndPatience{15};
constexpr std::chrono::milliseconds kPollStep{20};

nlohmann::json done(const GuestStatus& status) {
  return to_json(status);
}

}  // namespace

GuestHost::GuestHost(std::string name, HostContext& context)
    : name_(std::move(name)),
      context_(context),
      strand_(boost::asio::make_strand(context.pool)),
      metrics_(context.metrics.add_vm(name_)),
      reprotect_({.enabled = context.config.reprotect,
                  .first = std::chrono::milliseconds(context.config.reprotect_min_ms),
                  .limit = std::chrono::milliseconds(context.config.reprotect_max_ms)}) {
  rest_.vm = name_;
  rest_.node = context.config.node;
}

GuestHost::~GuestHost() {
  REMUSD_ASSERT(protection_ == nullptr, "a protection is settled before its host goes");
}

std::shared_ptr<primary::Protection> GuestHost::protection() const {
  const std::lock_guard lock(mutex_);
  return protection_;
}

// Why a command that needs the running guest cannot be followed here.
Status GuestHost::not_here(const std::string& what) const {
  const GuestStatus now = status();
  if (now.role == "backup") {
    return {Code::unsafe, what + " " + name_ + ": this node holds its replica (" + now.state +
                              "); do it on node '" + now.peer + "', which runs it"};
  }
  return {Code::unavailable,
          what + " " + name_ + ": it does not run here (" + now.state + "); start it first"};
}

Reply GuestHost::stop(bool graceful, Duration patience, bool dry_run) {
  settle();
  if (leftover_ && !dry_run) {
    if (Status gone = end_process(*leftover_); !gone.ok()) return gone.with_context("stop " + name_);
    drop_leftover("stopped", "stopped by command");
    return done(status());
  }
  if (guest_ == nullptr) return not_here("stop");
  if (dry_run) {
    return Reply::would(std::string(protection() ? "unprotect and " : "") +
                        (graceful ? "press the power button of " : "end ") + name_);
  }
  stop_reprotecting();
  if (protection() != nullptr) {
    const Reply ended = unprotect("the guest is being stopped", false);
    if (!ended.status.ok()) return ended;
    if (guest_ == nullptr) return done(status());
  }
  std::string reason = "stopped by command";
  if (graceful) {
    if (Status pressed = guest_->power_button(); !pressed.ok()) return pressed.with_context("stop " + name_);
    const Time deadline = Clock::now() + patience;
    bool gone = false;
    std::mutex never;
    std::unique_lock lock(never);
    std::condition_variable nobody;
    while (!gone && Clock::now() < deadline) {
      for (const guest::Event& event : guest_->take_events()) {
        gone = gone || event.kind == guest::EventKind::powered_off || event.kind == guest::EventKind::exited;
      }
      if (!gone) nobody.wait_for(lock, kPollStep);
    }
    if (!gone) {
      return Status(Code::timed_out, "stop " + name_ + ": its system did not power off within " +
                                         format_duration(patience) + "; stop it without --graceful");
    }
    reason = "powered off";
  }
  if (Status gone = guest_->destroy(); !gone.ok()) return gone.with_context("stop " + name_);
  if (record_names_peer_) disown_replicas();
  lose_guest("stopped", reason);
  return done(status());
}

Status GuestHost::check_protect(const std::string& peer) const {
  if (guest_ == nullptr) return not_here("protect");
  if (protection() != nullptr) {
    const GuestStatus now = status();
    return {Code::exists, "protect " + name_ + ": it is already protected by node '" + now.peer + "' (" +
                              now.state + "); unprotect it first"};
  }
  if (disks_ != nullptr && !disks_->connected()) {
    return {Code::unavailable, "protect " + name_ +
                                   ": its hypervisor has not come back to its disks since the daemon was "
                                   "restarted, which takes up to 16 s; try again"};
  }
  if (context_.config.peers.count(peer) == 0) {
    std::string known;
    for (const auto& [name, address] : context_.config.peers) known += (known.empty() ? "" : ", ") + name;
    return {Code::invalid,
            "protect " + name_ + ": unknown peer '" + peer + "'; " +
                (known.empty() ? "none is configured, add [peer." + peer + "]" : "known: " + known)};
  }
  return {};
}

primary::Options GuestHost::protection_options(const std::string& peer,
                                               const primary::PaceOptions& pace) const {
  const Config& config = context_.config;
  primary::Options options;
  options.node = config.node;
  options.peer = peer;
  options.peer_address = config.peers.at(peer);
  options.pace = pace;
  options.precopy = config.precopy;
  options.heartbeat_interval = std::chrono::milliseconds(config.heartbeat_ms);
  options.heartbeat_lost = config.heartbeat_lost;
  options.arbiter_timeout = config.arbiter_timeout();
  options.ack_timeout = std::chrono::milliseconds(config.ack_timeout_ms);
  options.slow.unprotect = config.when_slow == "unprotect";
  options.slow.after = std::chrono::milliseconds(config.slow_after_ms);
  options.slow.bound = std::chrono::milliseconds(config.slow_bound_ms);
  options.staging_bytes = static_cast<size_t>(config.staging_mib) << 20;
  options.disk_sync_bytes_per_second = static_cast<uint64_t>(config.disk_sync_mib_s) << 20;
  options.shadow_bytes = static_cast<size_t>(config.shadow_mib) << 20;
  options.record_path = config.record_path;
  options.disks = disks_.get();
  return options;
}

primary::Callbacks GuestHost::protection_callbacks(uint64_t id) {
  // A weak reference: a callback must never be the one that lets go of the host.
  std::weak_ptr<GuestHost> weak = weak_from_this();
  primary::Callbacks callbacks;
  callbacks.on_epoch = [this](const EpochSample& sample) {
    metrics_->on_epoch(sample);  // The host outlives its Protection and its threads.
    const std::lock_guard lock(mutex_);
    window_.add(sample);
  };
  callbacks.on_guest_event = [this](const guest::Event& event) { on_guest_event(event); };
  callbacks.on_arbiter_request = [this](Duration took) { metrics_->on_arbiter_request(took); };
  callbacks.on_state = [this, weak, id](const primary::Snapshot& snapshot) {
    on_protection_state(id, snapshot);
    if (is_final(snapshot.state)) {
      boost::asio::post(strand_, [weak] {
        if (auto host = weak.lock()) host->settle();
      });
    }
  };
  return callbacks;
}

Reply GuestHost::protect(const std::string& peer, const primary::PaceOptions& pace, bool dry_run) {
  settle();
  if (!dry_run && replace_attempt(peer, pace)) return done(status());
  if (Status fit = check_protect(peer); !fit.ok()) return fit;
  if (const auto tls = context_.tls.context(); !tls.ok())
    return tls.status().with_context("protect " + name_);
  if (dry_run) {
    return Reply::would("protect " + name_ + " on node '" + peer + "' at " + context_.config.peers.at(peer) +
                        " with " + describe(pace));
  }
  stop_reprotecting();
  if (Status begun = begin_protection(peer, pace, false); !begun.ok()) return begun;
  return done(status());
}

Status GuestHost::begin_protection(const std::string& peer, const primary::PaceOptions& pace,
                                   bool automatic) {
  auto tls = context_.tls.context();
  if (!tls.ok()) return tls.status().with_context("protect " + name_);
  primary::Options options = protection_options(peer, pace);
  options.tls = *std::move(tls);
  uint64_t id = 0;
  {
    const std::lock_guard lock(mutex_);
    id = ++rest_.protection_id;
    automatic_ = automatic;
    last_protection_ = {};
    logged_state_ = primary::State::failed;
  }
  auto started = primary::Protection::start(*guest_, with_sizes(definition_, disks_.get()), *net_,
                                            context_.arbiter, options, protection_callbacks(id));
  const std::lock_guard lock(mutex_);
  if (!started.ok()) {
    automatic_ = false;
    return started.status().with_context("protect " + name_);
  }
  protection_ = *std::move(started);
  window_.clear();
  rest_.peer = peer;
  rest_.pace = pace;
  rest_.reason.clear();
  rest_.reason_code.clear();
  return {};
}

// Any thread of the Protection.
void GuestHost::on_protection_state(uint64_t id, const primary::Snapshot& snapshot) {
  const std::lock_guard lock(mutex_);
  if (id != rest_.protection_id) return;
  if (!is_final(last_protection_.state)) {
    last_protection_ = snapshot;
    if (is_final(snapshot.state)) plan_reprotect(snapshot);
  }
  changed_.notify_all();
  if (snapshot.state == logged_state_) return;
  logged_state_ = snapshot.state;
  if (snapshot.state == primary::State::protecting) reprotect_.held(Clock::now());
  std::string message = "protection: " + std::string(primary::to_string(snapshot.state));
  if (!snapshot.end.message().empty()) message += ": " + snapshot.end.message();
  const bool bad = snapshot.state == primary::State::fenced || snapshot.state == primary::State::frozen ||
                   !snapshot.end.ok();
  log(bad ? LogLevel::warn : LogLevel::info, {name_, snapshot.generation, snapshot.acked}, message);
}

bool GuestHost::wait_protection_end(Duration patience) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [&] { return is_final(last_protection_.state); });
}

// A protection that has ended is taken down, and what it left behind becomes our state.
void GuestHost::settle() {
  std::shared_ptr<primary::Protection> ended;
  primary::Snapshot last;
  {
    const std::lock_guard lock(mutex_);
    if (protection_ == nullptr || !is_final(last_protection_.state)) return;
    last = last_protection_;
    ended = std::move(protection_);
    protection_ = nullptr;
    ever_protected_ = ever_protected_ || last.acked > 0;
    rest_.state = ever_protected_ ? "unprotected" : "running";
    // Taking it down takes a while, and meanwhile nobody may be told that the guest runs here.
    if (last.state == primary::State::fenced) rest_.state = "fenced";
    if (last.state == primary::State::failed) rest_.state = "stopped";
    rest_.reason = last.end.message();
    rest_.reason_code = to_string(last.end.code());
    rest_.generation = std::max(rest_.generation, last.generation);
    rest_.sealed = last.sealed;
    rest_.sent = last.sent;
    rest_.acked = last.acked;
    rest_.released = last.released;
    rest_.epochs_by_reason = last.epochs_by_reason;
    rest_.switchover_ms = last.switchover_seconds * 1e3;
    if (last.forced) claim_.emplace(context_.arbiter, name_, context_.config.node, last.generation);
  }
  ended->join();  // A command or status() may hold it for another moment.
  ended.reset();
  // No checkpoint was sent, so the arbiter was not asked: its record still names the peer.
  if (last.state == primary::State::unprotected && last.sent == 0) disown_replicas();
  metrics_->on_aborted(last.sealed - last.acked);
  if (last.state == primary::State::fenced) {
    lose_guest("fenced", last.end.message());
  } else if (last.state == primary::State::failed) {
    if (Status gone = guest_->destroy(); !gone.ok()) {
      log(LogLevel::error, {name_, last.generation, 0}, "destroy what the guest left: " + gone.message());
    }
    lose_guest("stopped", last.end.message());
  } else {
    (void)end_powered_off();
  }
}

Reply GuestHost::unprotect(const std::string& reason, bool dry_run) {
  settle();
  if (guest_ == nullptr) return not_here("unprotect");
  const auto live = protection();
  if (live == nullptr && !reprotecting()) {
    return Reply::not_protected("unprotect " + name_ + ": it is not protected");
  }
  if (dry_run) return Reply::would("end the protection of " + name_ + " and destroy its replica");
  stop_reprotecting();
  if (live == nullptr) {
    remember();
    return done(status());
  }
  live->unprotect(reason);
  if (!wait_protection_end(kEndPatience)) {
    return Status(Code::timed_out, "unprotect " + name_ + ": the arbiter (" + context_.arbiter.describe() +
                                       ") has not answered yet; output stays held and it is asked again");
  }
  const std::string state = status().state;
  settle();
  stop_reprotecting();
  remember();
  if (state == "fenced") {
    return Status(Code::unsafe,
                  "unprotect " + name_ + ": the backup won the right to run; " + status().reason);
  }
  return done(status());
}

}  // namespace remusd::control
