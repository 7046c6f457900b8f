// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/backup_shell.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ckpt/page_codec.h"

namespace remusd::simulate {
namespace {

using backup::ActionKind;
using backup::Core;
using ckpt::FrameType;

constexpr size_t kStagingLimitBytes = 256u << 10;
constexpr size_t kFramesPerSlice = 1;
constexpr Duration kTurn = microseconds(20), kSliceTurn = microseconds(120);

backup::CoreConfig core_config(const Timing& timing, const std::string& nonce) {
  backup::CoreConfig config;
  config.heartbeat_interval = timing.heartbeat_interval;
  config.heartbeat_lost = timing.heartbeat_lost;
  config.retry_min = milliseconds(20);
  config.retry_max = milliseconds(300);
  config.nonce = nonce;
  return config;
}

}  // namespace

BackupShell::BackupShell(Node& node, Connection* connection)
    : node_(node),
      site_(node.site()),
      world_(site_.world),
      host_(node.id()),
      incarnation_(world_.incarnation(host_)),
      nonce_(node.next_nonce()),
      connection_(connection),
      core_(core_config(site_.timing, nonce_)) {}

void BackupShell::begin() {
  handshake_deadline_ = now() + site_.timing.handshake_timeout;
  site_.network.set_wake(connection_, host_, [this] { wake(); });
  turn();
}

void BackupShell::order_failover() {
  mail_order_ = true;
  wake();
}

void BackupShell::order_switchover() {
  mail_switchover_ = true;
  wake();
}

void BackupShell::order_end() {
  mail_end_ = true;
  wake();
}

void BackupShell::wake() {
  if (woken_ || gone_ || blocked_) return;
  woken_ = true;
  world_.at_host(host_, kTurn, [this] {
    if (woken_) turn();
  });
}

/// The thread is in a call that takes its time.
void BackupShell::block(Duration how_long, Task then) {
  blocked_ = true;
  world_.at_host(host_, how_long, [this, then = std::move(then)] {
    blocked_ = false;
    then();
    if (!died() && !gone_) turn();
  });
}

void BackupShell::turn() {
  woken_ = false;
  if (gone_ || blocked_) return;
  serve_mail();
  if (!perform()) return;
  if (!core_.final()) {
    bool frames_came = false;
    if (open()) frames_came = take_frames();
    if (died()) return;
    if (!frames_came) apply_some();
    feed_disk();
    if (core_.state() == backup::State::handshake && !blocked_ && now() >= handshake_deadline_) {
      core_.handshake_failed(Status(Code::timed_out, "the handshake took too long"), &actions_);
    }
    if (!deaf()) core_.tick(now(), &actions_);
    if (!perform()) return;
    heartbeat();
  }
  if (core_.final()) return end_session();
  if (!blocked_) arm_timer();
}

void BackupShell::arm_timer() {
  Duration delay = milliseconds(50);
  if (core_.state() == backup::State::handshake) {
    delay = std::min(delay, std::max(handshake_deadline_ - now(), kTurn));
  }
  const Time next = core_.next_tick();
  if (next != Time::max() && !deaf()) delay = std::min(delay, next - now());
  if (open() && next_heartbeat_ != Time::max()) delay = std::min(delay, next_heartbeat_ - now());
  if (store_ && store_->pending()) delay = kSliceTurn;
  const uint32_t timer = ++timer_;
  world_.at_host(host_, std::max(delay, Duration(microseconds(1))), [this, timer] {
    if (timer == timer_) turn();
  });
}

void BackupShell::serve_mail() {
  if (std::exchange(mail_end_, false)) {
    if (admitted_) send(FrameType::goodbye, 0, ckpt::Refuse{Code::ok, "dropped"});
    core_.end(Status(Code::ok, "dropped"), &actions_);
  }
  if (std::exchange(mail_order_, false) && !core_.final()) {
    (void)core_.order_failover("an operator", false, &actions_);
  }
  if (std::exchange(mail_switchover_, false) && !core_.final()) (void)core_.order_switchover(&actions_);
  const std::optional<arbiter::Answer> answer = std::exchange(mail_answer_, std::nullopt);
  if (answer) core_.arbiter_answered(*answer, now(), &actions_);
}

/// True when frames came.
bool BackupShell::take_frames() {
  ckpt::Bytes& inbox = connection_->inbox(host_);
  const bool bytes_came = inbox.size() > unread_bytes_;
  size_t at = 0;
  bool frames_came = false;
  while (open() && !blocked_) {
    ckpt::FrameView frame;
    size_t consumed = 0;
    Status status = reader_.next(std::span(inbox).subspan(at), &frame, &consumed);
    if (status.ok() && frame.header.magic == 0) break;
    if (status.ok()) {
      at += consumed;
      frames_came = true;
      if (!node_.step()) return true;
      status = on_frame(frame);
      if (died()) return true;
    }
    if (!status.ok()) link_failed(status);
  }
  inbox.erase(inbox.begin(), inbox.begin() + static_cast<ptrdiff_t>(std::min(at, inbox.size())));
  unread_bytes_ = inbox.size();
  if (bytes_came) core_.heard(now());
  if (open() && connection_->peer_closed(host_) && !blocked_) {
    link_failed(Status(Code::unavailable, "the primary closed the connection"));
  }
  return frames_came;
}

void BackupShell::link_failed(const Status& why) {
  site_.network.close(connection_, host_);
  core_.link_lost(why, &actions_);
}

Status BackupShell::on_frame(const ckpt::FrameView& frame) {
  if (core_.final() || refused_) return {};
  if (!admitted_) return on_handshake_frame(frame);
  if (frame.header.generation != core_.generation()) {
    return {Code::corrupt, "a frame of another generation"};
  }
  core_.heard(now());
  switch (frame.type()) {
    case FrameType::heartbeat:
      return {};
    case FrameType::goodbye:
      world_.note(host_, "is told goodbye");
      core_.goodbye("said so", &actions_);
      return {};
    case FrameType::order: {
      ckpt::Order order;
      REMUSD_TRY(ckpt::decode(frame.body, &order));
      (void)core_.order_failover("the primary's operator", order.kind == ckpt::OrderKind::switchover,
                                 &actions_);
      return {};
    }
    case FrameType::pages:
    case FrameType::disk:
    case FrameType::device:
    case FrameType::base:
    case FrameType::commit:
      return on_data(frame);
    default:
      if (frame.optional()) return {};
      if (step_ != Step::done) return on_handshake_frame(frame);
      return {Code::corrupt, "a record after the handshake"};
  }
}

Status BackupShell::on_handshake_frame(const ckpt::FrameView& frame) {
  if (frame.optional()) return {};
  const FrameType due = step_ == Step::hello        ? FrameType::hello
                        : step_ == Step::definition ? FrameType::definition
                                                    : FrameType::facts;
  if (frame.type() != due) return {Code::corrupt, "handshake: a record out of its turn"};
  if (step_ == Step::hello) return on_hello(frame);
  if (step_ == Step::definition) {
    step_ = Step::facts;
    send(FrameType::need_files, 0, ckpt::NeedFiles{});
    return {};
  }
  // Preparing a standby takes its time.
  block(world_.random().between(milliseconds(1), milliseconds(30)), [this] { standby_prepared(); });
  return {};
}

Status BackupShell::on_hello(const ckpt::FrameView& frame) {
  REMUSD_TRY(ckpt::decode(frame.body, &hello_));
  if (hello_.generation == 0 || hello_.generation != frame.header.generation) {
    return {Code::corrupt, "HELLO record: another generation than its frame"};
  }
  writer_.set_generation(hello_.generation);
  reader_.set_generation(hello_.generation);
  // The receive thread waits for the arbiter.
  blocked_ = true;
  site_.arbiter.read(host_, site_.timing.arbiter_timeout, [this](const auto& record) {
    blocked_ = false;
    on_admission(record);
    if (!died() && !gone_) turn();
  });
  return {};
}

/// Receiver::admit() and GuestHost::admit().
void BackupShell::on_admission(const Result<std::optional<arbiter::Record>>& record) {
  const bool shown = record.ok() && record->has_value() && (*record)->generation == hello_.generation &&
                     (*record)->owner == hello_.node;
  if (!shown || !node_.admits()) {
    send(FrameType::refuse, 0, ckpt::Refuse{Code::unsafe, "not now"});
    refused_ = true;
    core_.handshake_failed(Status(Code::unsafe, "refused"), &actions_);
    return;
  }
  ckpt::Hello ours;
  ours.session = hello_.session;
  ours.generation = hello_.generation;
  ours.node = name_of(host_);
  ours.vm = hello_.vm;
  admitted_ = true;
  session_ = site_.checkers.find_session(hello_.generation);
  core_.admitted(hello_.generation);
  step_ = Step::definition;
  send(FrameType::hello, 0, ours);
}

void BackupShell::standby_prepared() {
  step_ = Step::done;
  memory_.assign(kMemoryBytes, std::byte{0});
  store_.emplace(memory_, kStagingLimitBytes);
  replica_ = std::make_unique<ReplicaShell>(node_, session_, core_.generation(), [this] { wake(); });
  node_.give_disk(replica_.get());
  store_->use_disks({kDiskSizes.begin(), kDiskSizes.end()}, replica_.get());
  send(FrameType::ready, 0, ckpt::Ready{kStagingLimitBytes, kMemoryBytes});
  next_heartbeat_ = now();
  core_.standby_ready(now(), &actions_);
}

Status BackupShell::on_data(const ckpt::FrameView& frame) {
  const uint64_t epoch = frame.header.epoch;
  switch (core_.data(epoch)) {
    case Core::Take::drop:
      if (world_.plant(Plant::ack_after_latch) && frame.type() == FrameType::commit && !core_.final()) {
        ckpt::Commit commit;
        REMUSD_TRY(ckpt::decode(frame.body, &commit));
        send_ack(epoch, commit.digest);
      }
      return {};
    case Core::Take::corrupt:
      return {Code::corrupt, "data of epoch " + std::to_string(epoch) + " is out of turn"};
    case Core::Take::stage:
      break;
  }
  if (frame.type() == FrameType::commit) return on_commit(frame);
  plant_before_add(frame);
  const uint64_t applied = store_->applied();
  REMUSD_TRY(store_->add(frame));
  received_.add(frame.header.checksum);
  if (store_->applied() != applied) note_applied();
  return {};
}

Status BackupShell::on_commit(const ckpt::FrameView& frame) {
  const uint64_t epoch = frame.header.epoch;
  ckpt::FrameView taken = frame;
  ckpt::Commit commit;
  if (world_.plant(Plant::ignore_digest)) {
    REMUSD_TRY(ckpt::decode(frame.body, &commit));
    commit.digest = received_.value();
    body_.clear();
    ckpt::encode(commit, &body_);
    taken.body = body_;
    REMUSD_TRY(store_->commit(taken, &commit));
    ckpt::Commit theirs;
    REMUSD_TRY(ckpt::decode(frame.body, &theirs));
    commit.digest = theirs.digest;
  } else {
    REMUSD_TRY(store_->commit(taken, &commit));
  }
  received_.reset();
  if (world_.plant(Plant::ack_before_staged) && epoch > 1) {
    send_ack(epoch, commit.digest);
    world_.at_host(host_, world_.random().between(milliseconds(1), milliseconds(10)), [this, epoch] {
      if (gone_ || core_.final() || core_.acking_stopped()) return;
      site_.checkers.staged(session_, epoch);
      core_.epoch_staged(epoch, true, &actions_);
      std::erase_if(actions_, [](const backup::Action& action) { return action.kind == ActionKind::ack; });
      turn();
    });
    return {};
  }
  site_.checkers.staged(session_, epoch);
  world_.note(host_, "staged epoch", epoch);
  digests_.push_back(commit.digest);
  core_.epoch_staged(epoch, true, &actions_);
  plant_after_commit(epoch);
  note_applied();
  return {};
}

void BackupShell::apply_some() {
  if (!store_) return;
  if (store_->pending()) store_->apply_slice(open() ? kFramesPerSlice : SIZE_MAX);
  note_applied();
  while (!core_.final() && core_.applied() < std::min(store_->applied(), core_.acked())) {
    core_.applied(core_.applied() + 1, &actions_);
  }
}

/// Receiver::feed_disks().
void BackupShell::feed_disk() {
  if (!replica_ || core_.final()) return;
  send_acks(/*just_decided=*/false);
  const bool waits = core_.state() == backup::State::syncing || core_.state() == backup::State::standby;
  if (replica_->failure().ok() || !waits) return;
  send(FrameType::goodbye, 0, ckpt::Refuse{Code::io, "the replica of its disk is lost"});
  core_.end(replica_->failure(), &actions_);
}

void BackupShell::send_acks(bool just_decided) {
  const bool may = just_decided || !core_.acking_stopped();
  while (!acks_.empty() && may && !replica_->behind()) {
    send_ack(acks_.front(), digests_.front());
    acks_.pop_front();
    digests_.pop_front();
  }
}

void BackupShell::note_applied() {
  if (store_->pending() || store_->applied() == image_checked_ || world_.plant(Plant::ack_before_staged))
    return;
  image_checked_ = store_->applied();
  site_.checkers.image(session_, store_->applied(), memory_, store_->device());
}

void BackupShell::heartbeat() {
  if (now() < next_heartbeat_ || core_.final() || !open()) return;
  next_heartbeat_ = now() + site_.timing.heartbeat_interval;
  send(FrameType::heartbeat, 0,
       ckpt::Heartbeat{.sent_ns = static_cast<uint64_t>(now().time_since_epoch().count())});
}

template <typename Record>
void BackupShell::send(FrameType type, uint64_t epoch, const Record& record) {
  if (!open()) return;
  body_.clear();
  ckpt::encode(record, &body_);
  wire_.clear();
  (void)writer_.append(type, epoch, body_, &wire_);
  site_.network.send(connection_, host_, wire_);
}

/// False when this host died on the way.
bool BackupShell::perform() {
  // Carrying out one action may add others behind it.
  for (size_t i = 0; i < actions_.size(); ++i) {
    const backup::Action action = actions_[i];
    if (!node_.step()) return false;
    switch (action.kind) {
      case ActionKind::ack:
        acks_.push_back(action.number);
        send_acks(/*just_decided=*/true);
        break;
      case ActionKind::apply:
        break;
      case ActionKind::ask_arbiter:
        ask_arbiter(action.number);
        break;
      case ActionKind::ask_switchover:
        send(FrameType::order, 0, ckpt::Order{ckpt::OrderKind::switchover});
        break;
      case ActionKind::fence_peer:
        break;  // not configured here
      case ActionKind::load:
        block(world_.random().between(milliseconds(1), milliseconds(9)), [this] { load(); });
        break;
      case ActionKind::tell_end:
        send(FrameType::goodbye, 0, ckpt::Refuse{action.why.code(), "cannot"});
        break;
      case ActionKind::promote:
        block(world_.random().between(milliseconds(1), milliseconds(loaded_ ? 1 : 9)), [this] { promote(); });
        break;
      case ActionKind::destroy_standby:
        store_.reset();
        loaded_.reset();
        if (replica_) replica_->end();
        break;
      case ActionKind::close_link:
        site_.network.close(connection_, host_);
        break;
      case ActionKind::report:
        world_.note(host_, backup::to_string(core_.state()), core_.generation());
        break;
    }
  }
  actions_.clear();
  return true;
}

void BackupShell::send_ack(uint64_t epoch, uint64_t digest) {
  world_.note(host_, "acknowledges epoch", epoch);
  send(FrameType::ack, epoch, ckpt::Ack{digest, std::min(epoch, store_->applied())});
}

void BackupShell::ask_arbiter(uint64_t expected_generation) {
  arbiter::Record desired;
  desired.generation = expected_generation + 1;
  if (world_.plant(Plant::promote_stale_generation)) {
    desired.generation = site_.arbiter.record().generation + 1;
  }
  desired.owner = name_of(host_);
  desired.epoch = core_.acked();
  desired.nonce = nonce_;
  if (world_.plant(Plant::skip_arbiter)) {
    mail_answer_ = arbiter::Answer{arbiter::Verdict::won, desired, {}};
    return wake();
  }
  site_.arbiter.acquire(host_, desired, site_.timing.arbiter_timeout, [this](const arbiter::Answer& answer) {
    mail_answer_ = answer;
    if (world_.plant(Plant::trust_ambiguous_answer) && answer.verdict == arbiter::Verdict::unknown) {
      mail_answer_->verdict = arbiter::Verdict::won;
    }
    if (world_.plant(Plant::forget_nonce) && answer.current && answer.current->nonce == nonce_ &&
        answer.verdict == arbiter::Verdict::lost) {
      mail_answer_->current->nonce = "forgotten";
    }
    wake();
  });
}

std::optional<Guest> BackupShell::restore() {
  if (world_.plant(Plant::ack_before_staged)) store_->finish();
  const Status drained = replica_->drain();
  if (died()) return std::nullopt;
  if (drained.ok()) site_.checkers.disk_is_applied(host_, session_, store_->applied(), node_.disk().blocks());
  site_.checkers.image(session_, store_->applied(), memory_, store_->device());
  if (drained.ok() && !node_.loads_fail()) {
    replica_->release();
    return Guest::restore(world_, host_, memory_, store_->device());
  }
  ++world_.stats().loads_failed;
  world_.note(host_, "could not load the guest");
  site_.checkers.load_failed(nonce_, core_.planned());
  return std::nullopt;
}

/// The guest stands on the primary, and here then.
void BackupShell::load() {
  if (core_.final()) return;
  loaded_ = restore();
  if (died()) return;
  const bool good = loaded_ || world_.plant(Plant::ask_unloaded);
  core_.loaded(good ? Status() : Status(Code::io, "no guest"), &actions_);
  if (loaded_ && world_.plant(Plant::run_when_loaded)) {
    site_.checkers.promoted(session_, host_, core_.applied(), nonce_, *loaded_,
                            site_.nodes[other(host_)]->passes());
  }
}

void BackupShell::promote() {
  if (core_.final()) return;
  auto guest = core_.planned() ? std::exchange(loaded_, std::nullopt) : restore();
  if (died()) return;
  if (!guest) return core_.promotion_done(Status(Code::corrupt, "no guest"), &actions_);
  site_.checkers.promoted(session_, host_, core_.applied(), nonce_, *guest,
                          site_.nodes[other(host_)]->passes());
  world_.note(host_, "PROMOTED from epoch", core_.applied());
  ++world_.stats().failovers;
  if (core_.planned()) ++world_.stats().switchovers;
  node_.adopt(*std::move(guest));
  if (core_.planned()) send(FrameType::goodbye, 0, ckpt::Refuse{Code::ok, "it runs here"});
  core_.promotion_done({}, &actions_);
}

void BackupShell::end_session() {
  gone_ = true;
  site_.network.close(connection_, host_);
  node_.session_ended();
}

void BackupShell::plant_before_add(const ckpt::FrameView& frame) {
  if (!world_.plant(Plant::apply_before_commit) || frame.type() != FrameType::pages) return;
  uint32_t pages = 0;
  if (ckpt::check_pages(frame.body, kGuestPages, &pages).ok()) (void)ckpt::apply_pages(frame.body, memory_);
}

// Half of the image goes back to what it was before.
void BackupShell::plant_after_commit(uint64_t epoch) {
  if (!world_.plant(Plant::apply_half_epoch) || epoch == 1) return;
  const size_t half = kMemoryBytes / 2;
  const std::vector<std::byte> before(memory_.begin() + half, memory_.end());
  store_->finish();
  std::copy(before.begin(), before.end(), memory_.begin() + half);
}

}  // namespace remusd::simulate
