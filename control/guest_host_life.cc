// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// GuestHost: how a guest comes to run here, is watched, and goes.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "control/driver_options.h"
#include "control/guest_host.h"
#include "control/log.h"
#include "control/pace.h"

namespace remusd::control {
namespace {

constexpr std::chrono::milliseconds kBenchSpacing{25};
constexpr std::chrono::seconds kShutDownPatience{8};
constexpr std::chrono::seconds kOneReboot{2};

}  // namespace

Status GuestHost::check_start(const guest::Definition& definition, bool force) {
  const std::string what = "start " + name_;
  if (guest_ != nullptr) return {Code::exists, what + ": it already runs here"};
  {
    const std::lock_guard lock(mutex_);
    if (has_leftover_) return {Code::unavailable, what + ": " + rest_.reason};
    if (session_ != nullptr) {
      return {Code::unsafe, what + ": this node holds its replica; 'remusd failover " + name_ +
                                "' runs it here, 'remusd unprotect' on its primary drops the replica"};
    }
  }
  const auto other = load_guest_state(context_.config.state_dir, name_);
  if (definition.attach_qmp.empty() && other.ok() && !other->standby && lives(*other)) {
    return {Code::unsafe, what + ": it already runs here as process " + std::to_string(other->pid) +
                              ", which this daemon does not have; end it, or restart the daemon"};
  }
  auto record = context_.arbiter.read(name_, Clock::now() + context_.config.arbiter_timeout());
  if (!record.ok()) return record.status().with_context(what + ": read who may run it from the arbiter");
  if (record->has_value() && (*record)->owner != context_.config.node) {
    return {Code::unsafe, what + ": refused, node '" + (*record)->owner + "' owns it since generation " +
                              std::to_string((*record)->generation) +
                              "; protect it from there, then fail over"};
  }
  if (record->has_value() && !(*record)->peer.empty() && !force) {
    return {Code::unsafe, what + ": refused, node '" + (*record)->peer +
                              "' may hold a newer state of it (it protected generation " +
                              std::to_string((*record)->generation) +
                              ", which did not end in order); see 'remusd status " + name_ +
                              "' there, or give that state up with start --force"};
  }
  return {};
}

Status GuestHost::win_right_to_run() {
  const Time began = Clock::now();
  auto won = arbiter::win_next_generation(context_.arbiter, name_, context_.config.node, /*peer=*/"",
                                          began + context_.config.arbiter_timeout());
  metrics_->on_arbiter_request(Clock::now() - began);
  if (!won.ok()) return won.status();
  record_names_peer_ = false;
  const std::lock_guard lock(mutex_);
  rest_.generation = *won;
  return {};
}

Result<std::unique_ptr<netbuf::NetBuffer>> GuestHost::open_gates(guest::Guest& guest) {
  std::vector<netbuf::Nic> nics;
  for (const guest::NicEndpoint& endpoint : guest.nics()) {
    if (endpoint.socket_path.empty()) continue;
    REMUSD_ASSIGN(ScopedFd tap, netbuf::open_tap(endpoint.tap, endpoint.bridge));
    nics.push_back({endpoint.id, endpoint.mac, endpoint.socket_path, std::move(tap)});
  }
  netbuf::NetOptions options;
  options.limit_bytes = static_cast<size_t>(context_.config.packet_buffer_mib) << 20;
  return netbuf::NetBuffer::start(std::move(nics), options, name_, false);
}

Status GuestHost::start_guest(const guest::Definition& wanted) {
  const guest::DriverOptions options = driver_options(context_.config);
  const bool attaching = !wanted.attach_qmp.empty();
  guest::Definition definition = wanted;
  if (attaching) {
    REMUSD_ASSIGN(definition, guest::describe(wanted, options));
    REMUSD_TRY(guest::complete_and_validate(&definition));  // Its cards are known only now.
  }
  REMUSD_TRY(win_right_to_run());
  REMUSD_ASSIGN(auto disks, open_disks(definition, context_.config, /*lives=*/false));
  REMUSD_ASSIGN(std::unique_ptr<guest::Guest> guest,
                attaching ? guest::attach(definition, options) : guest::start(definition, options));
  auto net = open_gates(*guest);
  if (!net.ok()) {
    if (!attaching) {
      if (Status gone = guest->destroy(); !gone.ok()) log(LogLevel::error, {name_}, gone.message());
    }
    return net.status();
  }
  take_guest(definition, !attaching, std::move(disks), std::move(guest), *std::move(net));
  remember();
  return {};
}

void GuestHost::take_guest(const guest::Definition& definition, bool launched,
                           std::shared_ptr<disk::Disks> disks, std::unique_ptr<guest::Guest> guest,
                           std::unique_ptr<netbuf::NetBuffer> net) {
  definition_ = definition;
  launched_ = launched;
  guest_ = std::move(guest);
  net_ = std::move(net);
  context_.residues.drop(name_);
  metrics_->reset_net();
  const std::lock_guard lock(mutex_);
  disks_ = std::move(disks);
  has_guest_ = true;
  ever_protected_ = false;
  window_.clear();
  const uint64_t generation = rest_.generation, id = rest_.protection_id;
  rest_ = {};
  rest_.vm = name_;
  rest_.node = context_.config.node;
  rest_.state = "running";
  rest_.generation = generation;
  rest_.protection_id = id;
  rest_.pid = guest_->pid();
}

Reply GuestHost::start(const guest::Definition& definition, bool force, bool dry_run) {
  settle();
  {
    const std::lock_guard lock(mutex_);
    if (retired_)
      return Status(Code::unavailable, "start " + name_ + ": its replica is just going; try again");
    starting_ = true;  // No session is admitted from here on.
  }
  Status outcome = check_start(definition, force);
  if (outcome.ok() && !dry_run) outcome = start_guest(definition).with_context("start " + name_);
  {
    const std::lock_guard lock(mutex_);
    starting_ = false;
  }
  if (!outcome.ok() || dry_run) retire_if_idle();
  if (!outcome.ok()) return outcome;
  if (dry_run) return Reply::would((definition.attach_qmp.empty() ? "start " : "attach to ") + name_);
  const GuestStatus now = status();
  log(LogLevel::info, {name_, now.generation, 0}, "the guest runs here, unprotected");
  return to_json(now);
}

void GuestHost::lose_guest(const std::string& state, const std::string& reason) {
  REMUSD_ASSERT(protection() == nullptr, "the protection goes before its guest");
  if (net_ != nullptr) metrics_->on_net(net_->stats());
  net_.reset();
  metrics_->reset_net();
  // The node that runs it now may protect it here: most of its memory is still the same.
  if (state == "fenced") context_.residues.put(name_, guest_->take_memory(), Clock::now());
  guest_.reset();
  std::shared_ptr<disk::Disks> disks;  // without the lock: what is under way on them is waited for
  claim_.reset();
  save({});
  {
    const std::lock_guard lock(mutex_);
    disks = std::move(disks_);
  }
  disks.reset();
  const std::lock_guard lock(mutex_);
  has_guest_ = false;
  reprotect_.clear();
  powered_off_ = false;
  rest_.state = state;
  rest_.reason = reason;
  rest_.pid = 0;
  rest_.held_bytes = 0;
  log(LogLevel::warn, {name_, rest_.generation, 0}, "the guest is gone (" + state + "): " + reason);
}

// The strand, or the epoch thread.
void GuestHost::on_guest_event(const guest::Event& event) {
  const std::lock_guard lock(mutex_);
  if (event.kind == guest::EventKind::rebooted) {
    // Firmware resets the machine once more on its way up: one reboot.
    const Time before = std::exchange(last_reset_, Clock::now());
    if (last_reset_ - before < kOneReboot) return;
  }
  metrics_->on_guest_event(event.kind);
  switch (event.kind) {
    case guest::EventKind::rebooted:
      ++rest_.reboots;
      rest_.panicked = false;
      break;
    case guest::EventKind::panicked:
      rest_.panicked = true;
      break;
    case guest::EventKind::powered_off:
      powered_off_ = true;
      break;
    case guest::EventKind::exited:
      break;
  }
  const bool bad = event.kind == guest::EventKind::panicked || event.kind == guest::EventKind::exited;
  log(bad ? LogLevel::warn : LogLevel::info, {name_, rest_.generation, 0}, "guest event: " + event.detail);
}

// A guest that powered itself off is stopped here, as by command. True when it was so.
bool GuestHost::end_powered_off() {
  {
    const std::lock_guard lock(mutex_);
    if (!powered_off_ || protection_ != nullptr) return false;
  }
  if (Status gone = guest_->destroy(); !gone.ok()) log(LogLevel::warn, {name_}, gone.message());
  lose_guest("stopped", "the guest powered off");
  return true;
}

// While a Protection lives its epoch thread takes the events; afterwards nobody else does.
void GuestHost::watch_guest() {
  if (guest_ == nullptr || protection() != nullptr) return;
  std::string gone;
  for (const guest::Event& event : guest_->take_events()) {
    on_guest_event(event);
    if (event.kind == guest::EventKind::exited) gone = event.detail.empty() ? "it exited" : event.detail;
  }
  if (end_powered_off()) return;
  const int pid = guest_->pid();
  if (gone.empty() && pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH) gone = "its process has gone";
  if (gone.empty()) return;
  if (Status cleaned = guest_->destroy(); !cleaned.ok()) log(LogLevel::warn, {name_}, cleaned.message());
  lose_guest("stopped", gone);
}

void GuestHost::poll() {
  settle_leftover();
  {
    const std::lock_guard lock(mutex_);
    if (retired_) return;
  }
  settle();
  if (net_ != nullptr) {
    const netbuf::NetStats stats = net_->stats();
    metrics_->on_net(stats);
    const std::lock_guard lock(mutex_);
    rest_.held_bytes = stats.held_bytes;
  }
  watch_guest();
  settle_claim();
  reprotect_when_due();
  remember();
  metrics_->on_status(status());
}

Status GuestHost::admit(std::shared_ptr<SessionSlot> slot, const std::string& peer) {
  const std::lock_guard lock(mutex_);
  const std::string node = "node '" + context_.config.node + "' ";
  if (retired_) return {Code::unavailable, node + "is just dropping an older replica; try again"};
  // These end by themselves: who asks has won the right to run, so what is here has lost it, or soon will.
  if (has_guest_ || has_leftover_ || starting_) {
    return {Code::unavailable, node + "still runs a guest named " + name_ + " itself; try again"};
  }
  if (session_ != nullptr) {
    return {Code::unavailable, node + "already holds a replica of " + name_ + " (" +
                                   std::string(status_word(session_->last().state)) + ")"};
  }
  session_ = std::move(slot);
  rest_ = {};
  rest_.vm = name_;
  rest_.node = context_.config.node;
  rest_.role = "backup";
  window_.clear();
  rest_.peer = peer;
  return {};
}

void GuestHost::adopt(const SessionSlot& slot, std::shared_ptr<backup::Promoted> promoted) {
  guest_ = std::move(promoted->guest);
  net_ = std::move(promoted->net);
  definition_ = std::move(promoted->definition);
  context_.residues.drop(name_);
  metrics_->reset_net();
  launched_ = true;
  const int pid = guest_->pid();
  {
    const std::lock_guard lock(mutex_);
    disks_ = std::move(promoted->disks);
    has_guest_ = true;
    promoted_slot_ = slot.id;
    if (promoted->forced)
      claim_.emplace(context_.arbiter, name_, context_.config.node, promoted->generation - 1);
    rest_.generation = promoted->generation;
    rest_.pid = pid;
    window_.clear();
  }
  remember();  // Only the strand takes the session away, and only once it has ended.
  {
    const std::lock_guard lock(mutex_);
    if (session_ != nullptr && session_->id == slot.id) return;  // its end is still to be told
  }
  finish_promotion();
}

void GuestHost::session_ended(const SessionSlot& slot) {
  const backup::Snapshot last = slot.last();
  {
    const std::lock_guard lock(mutex_);
    if (session_ == nullptr || session_->id != slot.id) return;
    session_ = nullptr;
    changed_.notify_all();
    rest_.reason = last.end.message();
    rest_.reason_code = to_string(last.end.code());
    rest_.generation = std::max(rest_.generation, last.generation);
    rest_.received = last.received;
    rest_.acked = last.acked;
    rest_.applied = last.applied;
    rest_.promote_ms = last.promote_seconds * 1e3;
  }
  if (last.state == backup::State::promoted) {
    metrics_->on_failover(last.end.ok() ? "ordered" : "primary_lost");
    if (guest_ != nullptr) finish_promotion();
    return;
  }
  if (guest_ == nullptr) save({});
  // A replica that failed after it had committed epochs is worth an operator's look; others just go.
  if (last.state == backup::State::failed && last.acked > 0) {
    const std::lock_guard lock(mutex_);
    rest_.state = "failed";
    return;
  }
  retire_if_idle();
}

void GuestHost::finish_promotion() {
  const std::lock_guard lock(mutex_);
  rest_.role = "primary";
  rest_.state = "unprotected";
  ever_protected_ = true;
  reprotect_.clear();
  const auto pace = make_pace(context_.config, nlohmann::json::object());
  if (!rest_.peer.empty() && pace.ok()) {
    reprotect_.want({rest_.peer, *pace}, Status(Code::ok, rest_.reason), Clock::now());
  }
  log(LogLevel::warn, {name_, rest_.generation, rest_.applied},
      "promoted in " + std::to_string(rest_.promote_ms) +
          " ms, the guest runs here unprotected: " + rest_.reason);
}

void GuestHost::retire_if_idle() {
  {
    const std::lock_guard lock(mutex_);
    const bool telling = rest_.state == "fenced" || rest_.state == "failed";
    const bool was_here = rest_.role == "primary" && rest_.generation > 0;  // stopped: still told
    if (has_guest_ || has_leftover_ || starting_ || session_ || telling || was_here || retired_) return;
    retired_ = true;
  }
  metrics_.reset();
  context_.on_retired(*this);
}

Reply GuestHost::bench_floor(int count) {
  settle();
  if (guest_ == nullptr) return not_here("bench floor");
  if (protection() != nullptr) {
    return Status(Code::exists, "bench floor " + name_ + ": it is protected; unprotect it first");
  }
  std::vector<double> pauses_ms;
  pauses_ms.reserve(static_cast<size_t>(count));
  Time next = Clock::now();
  for (int i = 0; i < count; ++i) {
    std::this_thread::sleep_until(next);
    const auto pause = guest_->plain_pause();
    if (!pause.ok()) return pause.status().with_context("bench floor " + name_);
    pauses_ms.push_back(to_ms(*pause));
    next += kBenchSpacing;
  }
  const double p50 = quantile(&pauses_ms, 0.5), p99 = quantile(&pauses_ms, 0.99),
               max = quantile(&pauses_ms, 1);
  return nlohmann::json{{"schema_version", kSchemaVersion},
                        {"count", count},
                        {"pause_ms", {{"p50", p50}, {"p99", p99}, {"max", max}}}};
}

bool GuestHost::shut_down() {
  bool clean = true;
  remember();  // with what is wanted of it, which ends here only for now
  stop_reprotecting();
  if (const auto live = protection()) {
    live->unprotect("the daemon of node '" + context_.config.node + "' is being stopped");
    clean = wait_protection_end(kShutDownPatience);
    if (!clean)
      log(LogLevel::error, {name_}, "protection did not end in time; the arbiter decides who goes on");
  }
  settle();
  if (!clean) return false;
  if (record_names_peer_ && guest_ != nullptr) disown_replicas();
  net_.reset();
  // Dropping a Guest that we started would end it. Its process stays.
  if (guest_ != nullptr && guest_->pid() > 0) {
    log(LogLevel::info, {name_}, "left running as process " + std::to_string(guest_->pid()));
    (void)guest_.release();
  }
  return true;
}

}  // namespace remusd::control
