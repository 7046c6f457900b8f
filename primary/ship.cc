// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/ship.h"

#include <algorithm>

#include "ckpt/fail_point.h"
#include "ckpt/thread.h"

namespace remusd::primary {
namespace {

using ckpt::FrameType;

/// What is queued at once before the link is looked at again: acknowledgements and heartbeats are not kept
/// waiting.
constexpr uint64_t kPumpBytes = 1u << 20;
/// How long a closing link may take to hand over GOODBYE.
constexpr Duration kDrainTimeout = std::chrono::milliseconds(500);
/// A backup that lives and does not go on telling what it has is as good as lost.
constexpr Duration kSeedPatience = std::chrono::seconds(10);

CoreConfig core_config(const Ship::Config& config, const std::string& nonce) {
  CoreConfig core;
  core.generation = config.generation;
  core.nonce = nonce;
  core.node = config.options.node;
  core.peer = config.options.peer;
  core.heartbeat_interval = config.options.heartbeat_interval;
  core.heartbeat_lost = config.options.heartbeat_lost;
  core.handshake_timeout = config.options.handshake_timeout;
  core.ack_timeout = config.options.ack_timeout;
  return core;
}

}  // namespace

Ship::Ship(guest::Guest& guest, netbuf::NetBuffer& net, arbiter::Arbiter& arbiter, Config config)
    : guest_(guest),
      net_(net),
      arbiter_(arbiter),
      config_(std::move(config)),
      nonce_(arbiter::make_nonce()),
      core_(core_config(config_, nonce_), Clock::now()),
      freshness_(config_.options.heartbeat_interval * std::max(2, config_.options.heartbeat_lost / 2)),
      slowness_(config_.options.slow) {}

Ship::~Ship() {
  REMUSD_ASSERT(!thread_.joinable(), "quit() comes before the end");
}

Status Ship::start() {
  const uint64_t memory_pages = guest_.memory().size() / kPageSize;
  REMUSD_ASSIGN(staging_, Staging::make(config_.options.staging_bytes, [this] { wake(); }));
  if (config_.options.shadow_bytes > 0) {
    REMUSD_ASSIGN(shadow_, ckpt::Shadow::make(memory_pages, config_.options.shadow_bytes));
    snapshot_.shadow_limit_bytes = shadow_->limit_bytes();
  }
  config_.session = config_.handshake.hello.session;
  handshake_ = std::make_unique<Handshake>(std::move(config_.handshake));
  snapshot_.generation = config_.generation;
  snapshot_.memory_bytes = staging_->limit_bytes() +
                           ckpt::link_memory_bytes(config_.options.link, config_.options.tls != nullptr) +
                           ckpt::kMaxBodyBytes + snapshot_.shadow_limit_bytes +
                           (config_.options.seed ? SeedMap::limit_bytes(memory_pages) : 0) +
                           (config_.options.disks != nullptr ? config_.options.disks->protection_bytes() : 0);
  snapshot_.staging_limit_bytes = staging_->limit_bytes();
  snapshot_.tracker = "none";
  thread_ = std::thread([this] {
    begin_thread("ship", Urgency::urgent);
    run();
  });
  return Status::ok_status();
}

void Ship::wake() {
  if (ckpt::Link* link = wake_link_.load()) link->wake();
  // Without the lock: the epoch thread calls this while the guest is paused. A wake-up that is missed for
  // that is made good by the next tick.
  mailbox_changed_.notify_one();
}

void Ship::unprotect(const std::string& reason) {
  {
    const std::lock_guard lock(mailbox_mutex_);
    mailbox_.unprotect = reason;
  }
  wake();
}

void Ship::order(ckpt::OrderKind kind) {
  {
    const std::lock_guard lock(mailbox_mutex_);
    mailbox_.order = kind;
  }
  wake();
}

void Ship::force() {
  {
    const std::lock_guard lock(mailbox_mutex_);
    mailbox_.force = true;
  }
  wake();
}

void Ship::verify_disks() {
  {
    const std::lock_guard lock(mailbox_mutex_);
    mailbox_.verify_disks = true;
  }
  wake();
}

void Ship::quit() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mailbox_mutex_);
    mailbox_.quit = true;
  }
  wake();
  thread_.join();
}

void Ship::run() {
  connect();
  while (serve_mail()) {
    const Time now = Clock::now();
    freshness_.awake(now);
    if (link_ && link_->open()) {
      serve_link(now);
    } else {
      idle(now);
    }
    tick(Clock::now());
    publish();
  }
  net_.divert(nullptr);
  end_disks();
  capture_.reset();  // Waits for the driver call that is under way, then the guest runs on.
  copier_.reset();
  verifier_.reset();
  end_disks();  // The copier may have let it log just now.
  if (config_.options.disks != nullptr) {
    if (core_.state() == State::unprotected) config_.options.disks->tap().won();
    config_.options.disks->tap().watch_hold(nullptr);
  }
  if (link_) link_->close(Status(Code::unavailable, "protection ended"));
  if (arbiter_thread_.joinable()) arbiter_thread_.join();
  wake_link_ = nullptr;
}

void Ship::connect() {
  const std::string what =
      "connect to backup " + config_.options.peer + " at " + config_.options.peer_address;
  auto socket = ckpt::connect_to(config_.options.peer_address, config_.options.connect_timeout);
  if (!socket.ok()) return carry_out(core_.link_lost(socket.status().with_context(what), Clock::now()));
  std::unique_ptr<ckpt::TlsSession> tls;
  if (config_.options.tls != nullptr) {
    auto session = config_.options.tls->connect(config_.options.peer, config_.options.connect_timeout);
    if (!session.ok()) return carry_out(core_.link_lost(session.status().with_context(what), Clock::now()));
    tls = *std::move(session);
  }
  auto link = ckpt::Link::adopt(*std::move(socket), config_.options.link, std::move(tls));
  if (!link.ok()) return carry_out(core_.link_lost(link.status().with_context(what), Clock::now()));
  link_ = *std::move(link);
  sender_ =
      std::make_unique<Sender>(*link_, *staging_, config_.generation, config_.options.heartbeat_interval,
                               [this](const EpochSample& sample) { on_epoch(sample); });
  if (!config_.options.record_path.empty()) {
    if (const Status status = sender_->record_to(config_.options.record_path); !status.ok())
      return carry_out(core_.link_lost(status, Clock::now()));
  }
  wake_link_ = link_.get();
  carry_out(core_.link_up(Clock::now()));
}

/// Orders and answers. False: quit.
bool Ship::serve_mail() {
  Mailbox mail;
  {
    const std::lock_guard lock(mailbox_mutex_);
    std::swap(mail, mailbox_);
  }
  const Time now = Clock::now();
  if (mail.answer) {
    fail_point("primary.answered");
    carry_out(core_.arbiter(*mail.answer, now));
  }
  if (mail.order == ckpt::OrderKind::failover) carry_out(core_.order_failover(now));
  if (mail.order == ckpt::OrderKind::switchover) carry_out(core_.order_switchover(now));
  if (mail.force) carry_out(core_.force());
  if (mail.verify_disks) begin_verify();
  if (mail.unprotect) carry_out(core_.unprotect(*mail.unprotect, now));
  return !mail.quit;
}

void Ship::serve_link(Time now) {
  const bool more = pump(now);
  tell_settled();
  if (core_.may_forward() && !order_waits_) input_.forward(sender_.get());
  const bool agreed = handshake_ == nullptr || handshake_->agreed();
  if (agreed && !close_at_) sender_->heartbeat(now);
  if (close_at_ && (now >= *close_at_ || link_->drained())) {
    link_->close(Status(Code::unavailable, "protection ended"));
    return;
  }
  Time deadline = more ? now : next_tick_;
  if (agreed && !close_at_) deadline = std::min(deadline, sender_->next_heartbeat());
  if (close_at_) deadline = std::min(deadline, *close_at_);
  const Status status =
      link_->wait(deadline, [this](const ckpt::FrameView& frame) { return on_frame(frame); });
  sender_->note_wire(Clock::now());
  if (!status.ok())
    carry_out(core_.link_lost(status.with_context("backup " + config_.options.peer), Clock::now()));
}

/// No link: what the epoch thread still hands over is dropped, and mail is waited for.
void Ship::idle(Time now) {
  if (sender_) (void)pump(now);
  std::unique_lock lock(mailbox_mutex_);
  const auto ready = [this] { return mailbox_.any(); };
  if (core_.final() && epochs_gone_) {
    mailbox_changed_.wait(lock, ready);
  } else {
    // The epoch thread's wake-ups carry no mail: any notification is worth a look.
    if (!ready()) mailbox_changed_.wait_until(lock, now + config_.options.heartbeat_interval);
  }
}

/// The guest stands, and it was won back.
void Ship::let_run() {
  if (!capture_ || !capture_->outcome().standing) return;
  stands_ = guest_.let_run();
  if (!stands_.ok()) return;  // Told as the end; when it died its events will say so, too.
  (void)guest_.stop_tracking();
  net_.divert(nullptr);
  input_.give_back(&net_);
}

/// Queues frames while there is room. True: there is more to send right now.
bool Ship::pump(Time now) {
  const bool open = link_->open() && !close_at_;
  if (open && handshake_ != nullptr) return pump_handshake();
  if (open) send_questions();
  const uint64_t until = sender_->queued_bytes() + kPumpBytes;
  while (sender_->queued_bytes() < until) {
    const bool discard = !open || !core_.may_send();
    const Sender::Step step = sender_->step(discard, now);
    if (step == Sender::Step::idle || step == Sender::Step::blocked) return false;
    on_step(step, now);
  }
  return true;
}

bool Ship::pump_handshake() {
  const uint64_t until = sender_->queued_bytes() + kPumpBytes;
  while (sender_->queued_bytes() < until) {
    if (!pending_set_) pending_set_ = handshake_->next(&pending_type_, &pending_);
    if (!pending_set_) return false;
    const Status status = sender_->send(pending_type_, 0, pending_);
    if (!status.ok()) return false;  // No room, or closed: wait() tells.
    pending_set_ = false;
  }
  return true;
}

void Ship::on_step(Sender::Step step, Time now) {
  switch (step) {
    case Sender::Step::holding:
      core_.holding();
      break;
    case Sender::Step::sealed:
      core_.sealed(sender_->epoch());
      break;
    case Sender::Step::committed:
      carry_out(core_.sent(sender_->epoch(), sender_->digest()));
      break;
    case Sender::Step::stopped:
      on_stopped(now);
      break;
    case Sender::Step::idle:
    case Sender::Step::blocked:
    case Sender::Step::worked:
      break;
  }
}

void Ship::on_stopped(Time now) {
  epochs_gone_ = true;
  const Capture::Outcome& outcome = capture_->outcome();
  switch (outcome.ending) {
    case Capture::Ending::asked:
      break;
    case Capture::Ending::guest_gone:
      carry_out(core_.guest_gone(outcome.why, now));
      break;
    case Capture::Ending::guest_left:
    case Capture::Ending::disk_error:
      carry_out(core_.unprotect(outcome.why.message(), now));
      break;
    case Capture::Ending::guest_error:
      carry_out(core_.guest_error(outcome.why, now));
      break;
  }
  carry_out(core_.epochs_stopped(now));
}

Status Ship::on_frame(const ckpt::FrameView& frame) {
  if (!core_.link_wanted()) return Status::ok_status();  // The decision is made: nothing that comes counts.
  const Time now = Clock::now();
  freshness_.awake(now);
  core_.heard(now);
  if (frame.type() == FrameType::refuse || frame.type() == FrameType::goodbye) {
    ckpt::Refuse refuse;
    REMUSD_TRY(ckpt::decode(frame.body, &refuse));
    if (core_.may_forward() && refuse.code == Code::ok)
      switchover_seconds_ = to_seconds(now - *capture_->outcome().standing);
    const bool refused = frame.type() == FrameType::refuse;
    const Code code = refuse.code == Code::ok ? Code::unavailable : refuse.code;
    carry_out(core_.refused(Status(code, "backup " + config_.options.peer +
                                             (refused ? " refused: " : " ended: ") + refuse.reason),
                            now));
    return Status::ok_status();
  }
  if (handshake_ != nullptr && !frame.optional()) {
    REMUSD_TRY(handshake_->on_frame(frame));
    if (handshake_->agreed()) link_->reader().set_generation(config_.generation);
    return handshake_->ready() ? on_ready(now) : Status::ok_status();
  }
  return on_session_frame(frame, now);
}

Status Ship::on_ready(Time now) {
  const uint64_t features = handshake_->features();
  if (config_.options.disks != nullptr && (features & ckpt::kFeatureDiskTell) != 0)
    inquiry_ = std::make_unique<disk::Inquiry>([this] { wake(); });
  handshake_.reset();
  if (shadow_ && (features & ckpt::kFeatureDelta) != 0) sender_->use_deltas(&*shadow_);
  if ((features & ckpt::kFeatureSeed) != 0) {
    REMUSD_ASSIGN(seed_, SeedMap::make(guest_.memory().size() / kPageSize));
    seed_heard_ = now;
  }
  carry_out(core_.standby_ready(now));
  return Status::ok_status();
}

Status Ship::on_seed(const ckpt::FrameView& frame, Time now) {
  if (!seed_) return Status(Code::corrupt, "the backup tells what it has out of its turn");
  ckpt::Seed record;
  REMUSD_TRY(ckpt::decode(frame.body, &record));
  REMUSD_TRY(seed_->add(record));
  seed_heard_ = now;
  if (!seed_->complete()) return Status::ok_status();
  seeded_pages_ = seed_->pages();
  if (capture_) capture_->seeded(std::move(seed_));
  if (copier_) send_disks();
  seed_.reset();
  return Status::ok_status();
}

Status Ship::on_session_frame(const ckpt::FrameView& frame, Time now) {
  switch (frame.type()) {
    case FrameType::ack: {
      ckpt::Ack ack;
      REMUSD_TRY(ckpt::decode(frame.body, &ack));
      const uint64_t before = core_.acked_epoch();
      fail_point("primary.acknowledged");
      carry_out(core_.acked(frame.header.generation, frame.header.epoch, ack.digest, now));
      if (core_.acked_epoch() > before) {
        last_ack_ = now;
        sender_->on_ack(core_.acked_epoch(), now);
        // One that tells nothing of its disks may have applied to memory only.
        if (inquiry_) config_.options.disks->durable(ack.applied_epoch);
      }
      return Status::ok_status();
    }
    case FrameType::seed:
      return on_seed(frame, now);
    case FrameType::heartbeat: {
      ckpt::Heartbeat heartbeat;
      REMUSD_TRY(ckpt::decode(frame.body, &heartbeat));
      sender_->on_heartbeat(heartbeat, now);
      // Both what we withheld and what the net thread may have slept over.
      if (freshness_.echoed(Time(std::chrono::nanoseconds(heartbeat.echo_ns))) && to_release_ > 0)
        release(to_release_);
      return Status::ok_status();
    }
    case FrameType::order: {
      ckpt::Order order;
      REMUSD_TRY(ckpt::decode(frame.body, &order));
      if (order.kind == ckpt::OrderKind::switchover) carry_out(core_.order_switchover(now));
      return Status::ok_status();
    }
    case FrameType::disk_tell:
      return inquiry_ ? inquiry_->told(frame.body) : Status::ok_status();
    case FrameType::progress:
      return Status::ok_status();  // What was sent says as much; the frame was a sign of life.
    default:
      if (frame.optional()) return Status::ok_status();
      return Status(Code::corrupt, "frame type " + std::to_string(frame.header.type) + " is out of its turn");
  }
}

void Ship::release(uint64_t epoch) {
  to_release_ = epoch;
  freshness_.awake(Clock::now());  // we may have stood still since the acknowledgement was looked at
  if (!freshness_.fresh()) return;
  net_.release_through(epoch, freshness_.good_until());
  fail_point("primary.released");
}

void Ship::on_epoch(const EpochSample& sample) {
  ++epochs_by_reason_[static_cast<size_t>(sample.reason)];
  if (capture_) capture_->acknowledged(sample.epoch, sample.commit);
  if (sample.epoch > 1) slowness_.acknowledged(sample, Clock::now());
  if (config_.callbacks.on_epoch) config_.callbacks.on_epoch(sample);
}

void Ship::tick(Time now) {
  if (now < next_tick_) return;
  next_tick_ = now + config_.options.heartbeat_interval;
  if (seed_ && core_.link_wanted() && now > seed_heard_ + kSeedPatience) {
    seed_.reset();
    carry_out(core_.link_lost(
        Status(Code::timed_out, "backup " + config_.options.peer + " does not go on telling what it has"),
        now));
  }
  carry_out(core_.tick(now));
  if (core_.state() != State::protecting) return;
  const bool waiting = core_.acked_epoch() < core_.sent_epoch();
  const Status slow = slowness_.tick(waiting ? std::optional<Time>(last_ack_) : std::nullopt, now);
  if (!slow.ok()) carry_out(core_.too_slow(slow.with_context("backup " + config_.options.peer), now));
}

void Ship::start_epochs() {
  CaptureOptions options;
  options.pace = config_.options.pace;
  options.precopy = config_.options.precopy;
  options.sync_threshold_pages = config_.options.sync_threshold_pages;
  options.sync_rounds = config_.options.sync_rounds;
  options.seed = seed_ != nullptr;
  options.on_event = config_.callbacks.on_guest_event;
  start_disks(&options);
  capture_ = std::make_unique<Capture>(guest_, net_, *staging_, options);
  epochs_gone_ = false;
  if (config_.options.disks != nullptr) config_.options.disks->tap().watch_hold([this] { wake(); });
  capture_->start();
}

void Ship::carry_out(const Actions& actions) {
  for (const Action& action : actions) carry_out(action);
}

void Ship::carry_out(const Action& action) {
  switch (action.kind) {
    case Action::Kind::start_epochs:
      return start_epochs();
    case Action::Kind::stop_epochs:
      capture_->request_stop();
      if (copier_) copier_->stop();
      // Nothing is sent any more: an epoch thread that waits for room must not wait for ever.
      if (!core_.may_send()) staging_->stop();
      return;
    case Action::Kind::last_epoch:
      return capture_->request_last([this](size_t card, auto frame) {
        const bool taken = input_.take(card, frame);
        wake();
        return taken;
      });
    case Action::Kind::let_run:
      return let_run();
    case Action::Kind::release_through:
      return release(action.number);
    case Action::Kind::ask_arbiter:
      freeze_disks();
      return ask(action.number);
    case Action::Kind::pass_output:
      win_disks();
      fail_point("primary.before_pass");
      return net_.pass();
    case Action::Kind::fence:
      fail_point("primary.before_fence");
      net_.shut();
      if (config_.options.disks != nullptr) config_.options.disks->tap().lost();
      // A guest that cannot be ended still cannot be heard: its gate is shut for good.
      (void)guest_.destroy();
      return;
    case Action::Kind::send_order:
      // The backup may write to shared storage from here on: nothing of ours is on its way there any more.
      freeze_disks();
      order_waits_ = config_.options.disks != nullptr && config_.options.disks->tap().held_disks() != 0;
      return order_waits_ ? tell_settled() : send_order();
    case Action::Kind::send_goodbye:
      return send_goodbye();
    case Action::Kind::close_link:
      return close_link();
    case Action::Kind::report: {
      publish();
      if (config_.callbacks.on_state) config_.callbacks.on_state(snapshot());
      return;
    }
  }
}

void Ship::send_goodbye() {
  ckpt::Refuse goodbye;
  goodbye.code = core_.end().code();
  goodbye.reason = core_.end().message().substr(0, ckpt::kMaxStringBytes);
  ckpt::Bytes body;
  ckpt::encode(goodbye, &body);
  // Without room it is left unsaid: the backup then loses the right to run to us and ends as well.
  if (sender_->send(FrameType::goodbye, 0, body).ok()) drain_before_close_ = true;
}

/// The link ends in the next serve_link(): this may run inside its wait().
void Ship::close_link() {
  close_at_ = Clock::now() + (drain_before_close_ ? kDrainTimeout : Duration::zero());
  staging_->stop();
  end_disks();
}

void Ship::ask(uint64_t expected_generation) {
  fail_point("primary.before_ask");
  if (arbiter_thread_.joinable()) arbiter_thread_.join();  // It has answered already.
  arbiter::Record desired;
  desired.generation = expected_generation + 1;
  desired.owner = config_.options.node;
  desired.boot_id = arbiter::this_boot_id();
  desired.epoch = core_.acked_epoch();
  desired.nonce = nonce_;
  arbiter_thread_ = std::thread([this, expected_generation, desired] {
    begin_thread("arbiter");
    const Time began = Clock::now();
    arbiter::Answer answer = arbiter::acquire(arbiter_, config_.vm, expected_generation, desired,
                                              began + config_.options.arbiter_timeout);
    if (config_.callbacks.on_arbiter_request) config_.callbacks.on_arbiter_request(Clock::now() - began);
    {
      const std::lock_guard lock(mailbox_mutex_);
      mailbox_.answer = std::move(answer);
    }
    wake();
  });
}

}  // namespace remusd::primary
