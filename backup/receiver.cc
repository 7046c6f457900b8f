// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/receiver.h"

#include <algorithm>
#include <utility>

#include "ckpt/fail_point.h"
#include "ckpt/records.h"

namespace remusd::backup {
namespace {

constexpr Duration kHelloPatience = std::chrono::seconds(5);  // for a stranger that says nothing
constexpr Duration kProgressInterval = std::chrono::milliseconds(100);
constexpr Duration kRefusePatience = std::chrono::seconds(1);
constexpr Duration kGoodbyePatience = std::chrono::milliseconds(200);
/// How long the primary may take, once the guest runs here, to end its side of a switchover.
constexpr Duration kInputPatience = std::chrono::milliseconds(250);
constexpr size_t kSeedRoom = 256u << 10;  // a SEED frame, and signs of life
constexpr size_t kFramesPerSlice = 8;     // at most 8 MiB of pages: a few milliseconds

uint64_t to_ns(Duration duration) {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(duration).count());
}

CoreConfig core_config(const Options& options, const std::string& nonce) {
  CoreConfig config;
  config.heartbeat_interval = options.heartbeat_interval;
  config.heartbeat_lost = options.heartbeat_lost;
  config.nonce = nonce;
  config.fence = static_cast<bool>(options.fence);
  return config;
}

}  // namespace

Receiver::Receiver(std::unique_ptr<ckpt::Link> link, arbiter::Arbiter& arbiter, const Options& options,
                   Callbacks callbacks)
    : options_(options),
      callbacks_(std::move(callbacks)),
      arbiter_(arbiter),
      nonce_(arbiter::make_nonce()),
      link_(std::move(link)),
      mailbox_([this] { link_->wake(); }),
      core_(core_config(options_, nonce_)),
      handshake_(
          *link_, options_,
          [this](const auto& vm, const auto& peer, uint64_t generation) {
            return admit(vm, peer, generation);
          },
          [this] { link_->wake(); }),
      promotion_(options_.net),
      handshake_deadline_(Clock::now() + options_.handshake_timeout),
      hello_deadline_(std::min(handshake_deadline_, Clock::now() + kHelloPatience)),
      requests_(arbiter_, options_, mailbox_, callbacks_.on_arbiter_request) {}

// Two hosts that ask different arbiters would both win. A session has a generation of its own, which its
// primary won before it connected: so our arbiter must show it.
Status Receiver::admit(const std::string& vm, const std::string& peer, uint64_t generation) {
  const auto record = arbiter_.read(vm, Clock::now() + options_.arbiter_timeout);
  if (!record.ok()) return record.status();
  const bool same = record->has_value() && (*record)->generation == generation && (*record)->owner == peer;
  if (!same) {
    const std::string shown = record->has_value() ? "generation " + std::to_string((*record)->generation) +
                                                        " of node " + (*record)->owner
                                                  : "no record";
    return {Code::unsafe, "the arbiter of node " + options_.node + " (" + arbiter_.describe() + ") shows " +
                              shown + " for " + vm + ", not generation " + std::to_string(generation) +
                              " of node " + peer + ": both hosts must use the same arbiter"};
  }
  return callbacks_.admit ? callbacks_.admit(vm, peer, generation) : Status();
}

void Receiver::run() {
  while (!core_.final()) {
    serve_mail();
    perform();
    if (core_.final()) break;
    // Answers first: an acknowledgement leaves with the next wait, and applying goes on when nothing came.
    if (!wait()) apply_some();
    note_applied();
    feed_disks();
    seed_some();
    core_.tick(Clock::now(), &actions_);
    watch_standby();
    perform();
    send_signs_of_life();
    publish(/*tell=*/false);
  }
}

void Receiver::serve_mail() {
  Mail mail = mailbox_.take();
  if (mail.end) end(Status(Code::ok, *mail.end));
  if (mail.failover && !core_.final()) {
    // Refused where it was ordered (Session::order_failover); the state may have changed since.
    (void)core_.order_failover("an operator of " + options_.node, /*planned=*/false, &actions_);
  }
  if (mail.switchover) (void)core_.order_switchover(&actions_);
  if (mail.force) (void)core_.force("an operator of " + options_.node, &actions_);
  if (mail.loaded) core_.loaded(*mail.loaded, &actions_);
  if (mail.fenced) core_.fenced(*mail.fenced, Clock::now(), &actions_);
  if (mail.answer) {
    won_at_ = Clock::now();
    core_.arbiter_answered(*mail.answer, won_at_, &actions_);
  }
}

void Receiver::end(const Status& why) {
  tell_end(why);
  core_.end(why, &actions_);
}

void Receiver::tell_end(const Status& why) {
  if (handshake_.admitted() && link_->open()) {
    ckpt::Bytes body;
    ckpt::encode(ckpt::Refuse{why.code(), why.message().substr(0, ckpt::kMaxStringBytes)}, &body);
    const Status queued = link_->append(ckpt::FrameType::goodbye, 0, body);
    (void)queued;  // a courtesy: the peer learns of the end by the closed link, too
  }
  flush(kGoodbyePatience, /*until_closed=*/false);
}

// A replica that nobody could run is none: the primary must not count on it. Nor is a guest that stands there
// to be asked for once more.
void Receiver::watch_standby() {
  const Time now = Clock::now();
  const bool waits = core_.state() == State::syncing || core_.state() == State::standby ||
                     (core_.state() == State::frozen && core_.planned());
  if (!waits || now < next_look_) return;
  next_look_ = now + options_.heartbeat_interval;
  if (const Status dead = standby_->alive(); !dead.ok()) end(dead.with_context("the standby is lost"));
}

Time Receiver::next_deadline() const {
  if ((store_ && store_->pending()) || may_seed()) return Clock::now();
  Time deadline = core_.next_tick();
  if (core_.state() == State::handshake) {
    deadline = std::min(deadline, handshake_.admitted() ? handshake_deadline_ : hello_deadline_);
  }
  if (link_->open()) deadline = std::min({deadline, next_heartbeat_, next_progress_});
  return deadline;
}

bool Receiver::wait() {
  if (!link_->open()) {
    mailbox_.wait(next_deadline());
    return false;
  }
  const ckpt::LinkStats before = link_->stats();
  const Status status = link_->wait(next_deadline(), [this](const auto& frame) { return on_frame(frame); });
  after_handshake_step();
  // A frame may be large and a busy host slow: its pieces are signs of life, too.
  if (link_->stats().received_bytes != before.received_bytes) core_.heard(Clock::now());
  if (!status.ok()) core_.link_lost(named(status), &actions_);
  return link_->stats().received_frames != before.received_frames;
}

Status Receiver::on_frame(const ckpt::FrameView& frame) {
  if (core_.final()) return {};
  if (!handshake_.admitted()) return on_handshake_frame(frame);
  if (frame.header.generation != handshake_.generation()) {
    return Status(Code::corrupt, "a frame of generation " + std::to_string(frame.header.generation) +
                                     " in a session of generation " +
                                     std::to_string(handshake_.generation()));
  }
  core_.heard(Clock::now());
  switch (frame.type()) {
    case ckpt::FrameType::heartbeat:
      return on_heartbeat(frame);
    case ckpt::FrameType::goodbye: {
      ckpt::Refuse goodbye;
      REMUSD_TRY(ckpt::decode(frame.body, &goodbye));
      core_.goodbye(goodbye.reason, &actions_);
      return {};
    }
    case ckpt::FrameType::order:
      return on_order(frame);
    case ckpt::FrameType::input:
      return on_input(frame);
    case ckpt::FrameType::disk_ask:
      return on_disk_ask(frame);
    case ckpt::FrameType::settled:
      return on_settled(frame);
    case ckpt::FrameType::pages:
    case ckpt::FrameType::keep:
    case ckpt::FrameType::disk:
    case ckpt::FrameType::device:
    case ckpt::FrameType::base:
    case ckpt::FrameType::commit:
      return on_data(frame);
    default:
      if (frame.optional()) return {};
      if (!handshake_.done()) return on_handshake_frame(frame);
      return Status(Code::corrupt,
                    "record type " + std::to_string(frame.header.type) + " after the handshake");
  }
}

Status Receiver::on_handshake_frame(const ckpt::FrameView& frame) {
  if (frame.optional()) return {};
  REMUSD_TRY(handshake_.on_frame(frame));
  if (handshake_.admitted() && core_.generation() == 0) core_.admitted(handshake_.generation());
  if (!handshake_.done()) return {};
  standby_ = handshake_.take_standby();
  store_.emplace(standby_->memory(), handshake_.staging_limit_bytes(),
                 (handshake_.features() & ckpt::kFeatureDelta) != 0);
  disks_ = handshake_.take_disks();
  if (disks_) {
    const uint32_t held = disks_->tap().held_disks();
    feed_.emplace(disks_->replica(), handshake_.generation(), held,
                  options_.disk_limit_bytes + disk::kMaxBeyondBound);
    store_->use_disks(disks_->sizes(), &*feed_, held);
  }
  if ((handshake_.features() & ckpt::kFeatureSeed) != 0) {
    seeder_.emplace(standby_->memory(),
                    callbacks_.take_residue ? callbacks_.take_residue(handshake_.vm()) : guest::Residue());
  }
  const Time now = Clock::now();
  next_heartbeat_ = now;
  next_progress_ = now + kProgressInterval;
  core_.standby_ready(now, &actions_);
  return {};
}

// Refusals and the handshake's deadline, once no frame is being looked at.
void Receiver::after_handshake_step() {
  if (core_.state() != State::handshake) return;
  if (!handshake_.refusal().ok()) {
    // The peer closes when it has read the reason; closing first could take it away from it.
    flush(kRefusePatience, /*until_closed=*/true);
    return core_.handshake_failed(named(handshake_.refusal()), &actions_);
  }
  const Time now = Clock::now();
  if (!handshake_.admitted() && now >= hello_deadline_) {
    core_.handshake_failed(named(Status(Code::timed_out, "it connected and did not say HELLO")), &actions_);
  } else if (now >= handshake_deadline_) {
    core_.handshake_failed(Status(Code::timed_out, "node " + handshake_.peer() + " did not complete the " +
                                                       "handshake for guest " + handshake_.vm() + " in time"),
                           &actions_);
  }
}

// Whom nobody has admitted yet the address must tell.
Status Receiver::named(const Status& why) const {
  if (handshake_.admitted() || why.ok()) return why;
  return why.with_context("a peer" + (options_.from.empty() ? "" : " at " + options_.from));
}

Status Receiver::on_data(const ckpt::FrameView& frame) {
  const uint64_t epoch = frame.header.epoch;
  switch (core_.data(epoch)) {
    case Core::Take::drop:
      return {};
    case Core::Take::corrupt:
      return Status(Code::corrupt, "data of epoch " + std::to_string(epoch) + " came in state " +
                                       std::string(to_string(core_.state())) + " after epoch " +
                                       std::to_string(core_.acked()));
    case Core::Take::stage:
      break;
  }
  if (seeder_) return Status(Code::corrupt, "data came before everything was told that is here");
  if (frame.type() == ckpt::FrameType::pages) fail_point("backup.pages");
  if (frame.type() != ckpt::FrameType::commit) {
    REMUSD_TRY(store_->add(frame));
    // Of the first sync nothing is acknowledged that could be withheld.
    if (feed_ && epoch == 1 && feed_->behind() && disks_->replica() != nullptr)
      (void)disks_->replica()->await_room(Clock::now() + options_.heartbeat_interval);
    return {};
  }
  REMUSD_TRY(fail_point_error("backup.commit"));
  ckpt::Commit commit;
  REMUSD_TRY(store_->commit(frame, &commit));
  fail_point("backup.staged");
  digests_.push_back(commit.digest);
  core_.epoch_staged(epoch, /*good=*/true, &actions_);
  return {};
}

Status Receiver::on_heartbeat(const ckpt::FrameView& frame) {
  ckpt::Heartbeat heartbeat;
  REMUSD_TRY(ckpt::decode(frame.body, &heartbeat));
  peer_sent_ns_ = heartbeat.sent_ns;
  peer_heard_at_ = Clock::now();
  return {};
}

Status Receiver::on_order(const ckpt::FrameView& frame) {
  ckpt::Order order;
  REMUSD_TRY(ckpt::decode(frame.body, &order));
  // An order that comes before there is anything to promote changes nothing.
  (void)core_.order_failover("the primary's operator", order.kind == ckpt::OrderKind::switchover, &actions_);
  return {};
}

Status Receiver::on_input(const ckpt::FrameView& frame) {
  ckpt::Input input;
  REMUSD_TRY(ckpt::decode(frame.body, &input));
  if (!core_.planned()) return Status(Code::corrupt, "INPUT outside a switchover");
  input_.take(input);
  return {};
}

Status Receiver::on_settled(const ckpt::FrameView& frame) {
  ckpt::Settled settled;
  REMUSD_TRY(ckpt::decode(frame.body, &settled));
  if (!feed_ || !feed_->holds()) return Status(Code::corrupt, "SETTLED of a guest without held disks");
  if (settled.epoch > core_.acked() || settled.epoch <= feed_->kept().settled_epoch()) {
    return Status(Code::corrupt, "SETTLED of epoch " + std::to_string(settled.epoch) + " after epoch " +
                                     std::to_string(feed_->kept().settled_epoch()) + ", acknowledged " +
                                     std::to_string(core_.acked()));
  }
  feed_->kept().settled(settled.epoch);
  return {};
}

void Receiver::apply_some() {
  if (store_ && store_->pending()) store_->apply_slice(link_->open() ? kFramesPerSlice : SIZE_MAX);
}

/// The store goes on with it also when frames come in.
void Receiver::note_applied() {
  while (store_ && !core_.final() && core_.applied() < store_->applied()) {
    core_.applied(core_.applied() + 1, &actions_);
  }
}

bool Receiver::may_seed() const {
  return seeder_ && link_->open() && link_->send_space() >= kSeedRoom;
}

void Receiver::seed_some() {
  if (core_.final() || !may_seed()) return;
  ckpt::Bytes body;
  seeder_->next(&body);
  if (!body.empty()) {
    if (const Status status = link_->append(ckpt::FrameType::seed, 0, body); !status.ok()) {
      link_->close(status);
      core_.link_lost(status, &actions_);
      return;
    }
  }
  if (!seeder_->done()) return;
  store_->begin_with(seeder_->take());
  seeder_.reset();
}

void Receiver::send_signs_of_life() {
  const Time now = Clock::now();
  if (core_.final() || !link_->open()) return;
  if (now >= next_heartbeat_) {
    next_heartbeat_ = now + options_.heartbeat_interval;
    ckpt::Heartbeat heartbeat;
    heartbeat.sent_ns = to_ns(now.time_since_epoch());
    if (peer_sent_ns_ > 0) heartbeat.echo_ns = peer_sent_ns_ + to_ns(now - peer_heard_at_);
    send(ckpt::FrameType::heartbeat, 0, heartbeat);
  }
  if (now >= next_progress_) {
    const bool syncing = core_.state() == State::syncing;
    next_progress_ = syncing ? now + kProgressInterval : Time::max();
    if (syncing) send(ckpt::FrameType::progress, 0, ckpt::Progress{store_->received_bytes()});
  }
}

void Receiver::perform() {
  // Carrying out one action may add others behind it.
  for (size_t i = 0; i < actions_.size(); ++i) {
    const Action action = actions_[i];
    switch (action.kind) {
      case ActionKind::ack:
        acks_.push_back(action.number);
        send_acks(/*just_decided=*/true);
        break;
      case ActionKind::apply:
        break;  // the store has it; apply_some() goes on with it between waits
      case ActionKind::ask_arbiter:
        ask_arbiter(action.number);
        promotion_.connect(*standby_, handshake_.vm());
        break;
      case ActionKind::fence_peer:
        requests_.fence(handshake_.peer());
        break;
      case ActionKind::load:
        load();
        break;
      case ActionKind::tell_end:
        tell_end(action.why);
        break;
      case ActionKind::promote:
        promote();
        break;
      case ActionKind::ask_switchover:
        send(ckpt::FrameType::order, 0, ckpt::Order{ckpt::OrderKind::switchover});
        break;
      case ActionKind::destroy_standby:
        destroy_standby();
        break;
      case ActionKind::close_link:
        if (link_->open()) link_->close(action.why);
        break;
      case ActionKind::report:
        publish(/*tell=*/true);
        break;
    }
  }
  actions_.clear();
}

/// Those that the disks have room for. Whoever asks for the right to run acknowledges nothing more.
void Receiver::send_acks(bool just_decided) {
  const State state = core_.state();
  const bool may =
      just_decided || state == State::syncing || state == State::standby || state == State::loading;
  while (!acks_.empty() && may && !(feed_ && feed_->behind())) {
    REMUSD_ASSERT(!digests_.empty(), "an ack repeats its commit's digest");
    const uint64_t epoch = acks_.front();
    uint64_t applied = std::min(epoch, store_->applied());
    if (disks_ && disks_->replica() != nullptr)
      applied = std::min(applied, disks_->replica()->durable_epoch());
    send(ckpt::FrameType::ack, epoch, ckpt::Ack{digests_.front(), applied});
    acks_.pop_front();
    digests_.pop_front();
    fail_point("backup.acked");
  }
}

template <typename Record>
void Receiver::send(ckpt::FrameType type, uint64_t epoch, const Record& record) {
  if (!link_->open()) return;
  ckpt::Bytes body;
  ckpt::encode(record, &body);
  // Our frames are few and small: a full queue means that the peer has not read for very long.
  if (const Status status = link_->append(type, epoch, body); !status.ok()) {
    link_->close(status);
    core_.link_lost(status, &actions_);
  }
}

void Receiver::flush(Duration patience, bool until_closed) {
  const Time deadline = Clock::now() + patience;
  while (link_->open() && (until_closed || !link_->drained()) && Clock::now() < deadline) {
    const Status status = link_->wait(deadline, [](const auto&) { return Status(); });
    if (!status.ok()) return;
  }
}

void Receiver::ask_arbiter(uint64_t expected_generation) {
  fail_point("backup.before_ask");
  arbiter::Record desired;
  desired.generation = expected_generation + 1;
  desired.owner = options_.node;
  desired.boot_id = arbiter::this_boot_id();
  desired.epoch = core_.acked();
  desired.nonce = nonce_;
  requests_.ask_arbiter(handshake_.vm(), desired);
}

void Receiver::load() {
  if (const Status drained = drain_disks(); !drained.ok()) {
    requests_.load([drained] { return drained; });
    return;
  }
  requests_.load([this] { return promotion_.load(*standby_, *store_, handshake_.vm()); });
}

void Receiver::promote() {
  fail_point("backup.won");
  if (disks_) {
    if (const Status drained = drain_disks(); !drained.ok()) return core_.promotion_done(drained, &actions_);
  }
  auto running = promotion_.run(*standby_, *store_, handshake_.vm());
  if (!running.ok()) return core_.promotion_done(running.status(), &actions_);
  fail_point("backup.promoted");
  promote_seconds_ = to_seconds(Clock::now() - won_at_);
  network_ = running->network;
  running->net->announce();
  const Status announced = running->guest->announce();  // best effort: ours above is enough
  (void)announced;
  if (core_.planned()) take_over_input(*running->net);
  store_.reset();
  feed_.reset();
  standby_.reset();  // spent
  Promoted promoted;
  promoted.disks = std::move(disks_);
  promoted.guest = std::move(running->guest);
  promoted.net = std::move(running->net);
  promoted.definition = handshake_.definition();
  promoted.generation = core_.generation() + 1;
  promoted.forced = core_.forced();
  if (callbacks_.on_promoted) callbacks_.on_promoted(std::move(promoted));
  core_.promotion_done({}, &actions_);
}

// The guest runs here; what came for it while it stood follows, until the primary has closed its gate.
void Receiver::take_over_input(netbuf::NetBuffer& net) {
  send(ckpt::FrameType::goodbye, 0, ckpt::Refuse{Code::ok, "the guest runs on node " + options_.node});
  input_.give(&net);
  const Time deadline = Clock::now() + kInputPatience;
  while (link_->open() && Clock::now() < deadline) {
    const Status status = link_->wait(deadline, [this](const ckpt::FrameView& frame) {
      return frame.type() == ckpt::FrameType::input ? on_input(frame) : Status();
    });
    input_.give(&net);
    if (!status.ok()) break;
  }
  link_->close(Status(Code::ok, "the guest was handed over"));
}

void Receiver::destroy_standby() {
  requests_.wait_for_load();
  publish(/*tell=*/false);  // what the store counted stays in the snapshot
  store_.reset();
  promotion_.drop();
  if (!standby_) return;
  if (seeder_) seeder_->finish();
  seeder_.reset();
  const Status destroyed = standby_->destroy();
  (void)destroyed;  // dropping it is all that is left to do
  if (callbacks_.leave_residue) callbacks_.leave_residue(handshake_.vm(), standby_->take_memory());
  standby_.reset();
  feed_.reset();
  disks_.reset();
}

}  // namespace remusd::backup
