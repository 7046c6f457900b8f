// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/primary_shell.h"

#include <algorithm>
#include <string>
#include <utility>

#include "ckpt/page_codec.h"

namespace remusd::simulate {
namespace {

using ckpt::FrameType;
using Kind = primary::Action::Kind;

constexpr size_t kSendQueueBytes = 2u << 10;
constexpr Duration kDrainTimeout = milliseconds(100);
constexpr size_t kPagesPerFrame = 2;  // so that even a small epoch has several

primary::CoreConfig core_config(Node& node, uint64_t generation, const std::string& nonce) {
  const Timing& timing = node.site().timing;
  primary::CoreConfig config;
  config.generation = generation;
  config.nonce = nonce;
  config.node = name_of(node.id());
  config.peer = name_of(other(node.id()));
  config.heartbeat_interval = timing.heartbeat_interval;
  config.heartbeat_lost = timing.heartbeat_lost;
  config.handshake_timeout = timing.handshake_timeout;
  config.ack_timeout = milliseconds(500);
  config.head_start = milliseconds(200);
  config.order_timeout = milliseconds(700);
  config.backoff_first = milliseconds(20);
  config.backoff_limit = milliseconds(300);
  return config;
}

primary::Handshake::Config handshake_config(HostId host, uint64_t generation) {
  primary::Handshake::Config config;
  config.hello.generation = generation;
  config.hello.node = name_of(host);
  config.hello.vm = "vm";
  config.peer = name_of(other(host));
  config.definition = "{}";
  config.facts = "{}";
  config.memory_bytes = kMemoryBytes;
  return config;
}

}  // namespace

PrimaryShell::PrimaryShell(Node& node, uint64_t generation)
    : node_(node),
      site_(node.site()),
      world_(site_.world),
      host_(node.id()),
      incarnation_(world_.incarnation(host_)),
      session_(site_.checkers.session_begins(host_, generation)),
      nonce_(node.next_nonce()),
      core_(core_config(node, generation, nonce_), world_.clock(host_)),
      handshake_(handshake_config(host_, generation)) {}

void PrimaryShell::stamp(Packet* packet) const {
  if (said_in_ == 0) return;
  packet->session = session_;
  packet->epoch = said_in_;
}

void PrimaryShell::connect() {
  site_.network.connect(host_, site_.timing.connect_timeout, [this](Connection* connection) {
    connected_ = true;
    if (connection == nullptr) {
      carry_out(core_.link_lost(Status(Code::unavailable, "no way to the backup"), now()));
    } else {
      connection_ = connection;
      writer_.set_generation(core_.generation());
      site_.network.set_wake(connection_, host_, [this] { wake(); });
      carry_out(core_.link_up(now()));
    }
    if (!died()) turn();
  });
}

void PrimaryShell::order_unprotect() {
  mail_unprotect_ = true;
  wake();
}
void PrimaryShell::order_failover() {
  mail_order_ = true;
  wake();
}

void PrimaryShell::order_switchover() {
  mail_switchover_ = true;
  wake();
}

void PrimaryShell::wake() {
  if (woken_ || gone_ || !connected_) return;
  woken_ = true;
  world_.at_host(host_, microseconds(20), [this] {
    if (woken_) turn();
  });
}

/// Ship::run(), once around.
void PrimaryShell::turn() {
  woken_ = false;
  if (gone_ || !serve_mail()) return;
  if (open()) {
    serve_link();
  } else {
    pump();
  }
  if (died()) return;
  if (now() >= next_tick_) {
    next_tick_ = now() + site_.timing.heartbeat_interval;
    if (!carry_out(core_.tick(now()))) return;
  }
  site_.checkers.counters(session_, core_.released_epoch(), core_.acked_epoch(), core_.sent_epoch(),
                          core_.sealed_epoch());
  settle();
  if (gone_) return;
  Time deadline = next_tick_;
  if (open() && !close_at_ && (!handshake_ || handshake_->agreed())) {
    deadline = std::min(deadline, next_heartbeat_);
  }
  if (open() && (close_at_ || blocked_)) deadline = std::min(deadline, now() + milliseconds(1));
  const uint32_t timer = ++timer_;
  world_.at_host(host_, std::max(deadline - now(), Duration(microseconds(1))), [this, timer] {
    if (timer == timer_ && !gone_) turn();
  });
}

bool PrimaryShell::serve_mail() {
  const std::optional<arbiter::Answer> answer = std::exchange(mail_answer_, std::nullopt);
  if (answer && !carry_out(core_.arbiter(*answer, now()))) return false;
  if (std::exchange(mail_order_, false) && !carry_out(core_.order_failover(now()))) return false;
  if (std::exchange(mail_switchover_, false) && !carry_out(core_.order_switchover(now()))) return false;
  return !std::exchange(mail_unprotect_, false) || carry_out(core_.unprotect("ordered", now()));
}

void PrimaryShell::serve_link() {
  pump();
  if (died()) return;
  if (!handshake_ || handshake_->agreed()) heartbeat();
  if (close_at_ && (now() >= *close_at_ || connection_->queued(host_) == 0)) {
    return site_.network.close(connection_, host_);
  }
  (void)take_frames();
}

/// What has come; false when this host died of it.
bool PrimaryShell::take_frames() {
  ckpt::Bytes& inbox = connection_->inbox(host_);
  size_t at = 0;
  while (open()) {
    ckpt::FrameView frame;
    size_t consumed = 0;
    Status status = reader_.next(std::span(inbox).subspan(at), &frame, &consumed);
    if (status.ok() && frame.header.magic == 0) break;
    if (status.ok()) {
      at += consumed;
      status = on_frame(frame);
      if (died()) return false;
    }
    if (!status.ok()) link_failed(status);
    if (died()) return false;
  }
  inbox.erase(inbox.begin(), inbox.begin() + static_cast<ptrdiff_t>(std::min(at, inbox.size())));
  if (open() && connection_->peer_closed(host_)) {
    link_failed(Status(Code::unavailable, "the backup closed the connection"));
  }
  return !died();
}

void PrimaryShell::link_failed(const Status& why) {
  site_.network.close(connection_, host_);
  carry_out(core_.link_lost(why, now()));
}

uint64_t PrimaryShell::send(FrameType type, uint64_t epoch, ckpt::View body) {
  wire_.clear();
  const uint64_t checksum = writer_.append(type, epoch, body, &wire_);
  site_.network.send(connection_, host_, wire_);
  return checksum;
}

void PrimaryShell::heartbeat() {
  if (now() < next_heartbeat_ || close_at_) return;
  next_heartbeat_ = now() + site_.timing.heartbeat_interval;
  if (connection_->queued(host_) > 2 * kSendQueueBytes) return;  // Data that fills the queue says as much.
  body_.clear();
  ckpt::encode(ckpt::Heartbeat{.sent_ns = static_cast<uint64_t>(now().time_since_epoch().count())}, &body_);
  (void)send(FrameType::heartbeat, 0, body_);
}

bool PrimaryShell::pump_handshake() {
  FrameType type{};
  while (handshake_->next(&type, &body_)) (void)send(type, 0, body_);
  return !died();
}

void PrimaryShell::pump() {
  const bool may = open() && !close_at_;
  if (may && handshake_) {
    (void)pump_handshake();
    return;
  }
  while (!staging_.empty()) {
    const Step step = send_next(!may || !core_.may_send());
    blocked_ = step == Step::blocked;
    if (step != Step::worked) return;
  }
}

/// Sender::step(): one frame, or one thing to tell the core.
PrimaryShell::Step PrimaryShell::send_next(bool discard) {
  Item& item = staging_.front();
  switch (item.kind) {
    case Item::Kind::holding:
      staging_.pop_front();
      core_.holding();
      return Step::worked;
    case Item::Kind::stopped:
      staging_.pop_front();
      epochs_run_ = false;
      if (failure_ != Failure::none) {
        const Status why(Code::io, "the guest failed");
        if (!carry_out(guest_gone() ? core_.guest_gone(why, now()) : core_.guest_error(why, now()))) {
          return Step::died;
        }
      }
      return carry_out(core_.epochs_stopped(now())) ? Step::worked : Step::died;
    case Item::Kind::sealed:
      if (!told_sealed_) {
        told_sealed_ = true;
        core_.sealed(item.epoch);
        return Step::worked;
      }
      return send_slot(&item, discard);
    case Item::Kind::pages:
    case Item::Kind::disk:
      break;
  }
  if (!discard) {
    if (connection_->queued(host_) > kSendQueueBytes) return Step::blocked;
    if (!node_.step()) return Step::died;
    if (item.kind == Item::Kind::disk) {
      digest_.add(send(FrameType::disk, item.epoch, item.data));
      raw_bytes_ += item.raw_bytes;
    } else {
      body_.clear();
      (void)ckpt::encode_pages(item.pages, item.data, &body_);
      digest_.add(send(FrameType::pages, item.epoch, body_));
      pages_sent_ += item.pages.size();
      raw_bytes_ += item.data.size();
    }
  }
  staging_.pop_front();
  return Step::worked;
}

/// DEVICE, then COMMIT.
PrimaryShell::Step PrimaryShell::send_slot(Item* item, bool discard) {
  if (discard) {
    --slots_used_;
    told_sealed_ = device_sent_ = false;
    staging_.pop_front();
    return Step::worked;
  }
  if (connection_->queued(host_) > kSendQueueBytes) return Step::blocked;
  if (!node_.step()) return Step::died;
  body_.clear();
  if (!device_sent_) {
    uint64_t next = 0;
    (void)ckpt::append_blob_part(item->data, 0, &body_, &next);
    digest_.add(send(FrameType::device, item->epoch, body_));
    raw_bytes_ += item->data.size();
    device_sent_ = true;
    return Step::worked;
  }
  ckpt::Commit commit;
  commit.frames = digest_.frames();
  commit.pages = pages_sent_;
  commit.device_bytes = item->data.size();
  commit.raw_bytes = raw_bytes_;
  commit.digest = digest_.value();
  ckpt::encode(commit, &body_);
  const uint64_t epoch = item->epoch;
  site_.checkers.commit_queued(session_);
  (void)send(FrameType::commit, epoch, body_);
  world_.note(host_, "sent COMMIT of epoch", epoch);
  digest_.reset();
  pages_sent_ = raw_bytes_ = 0;
  told_sealed_ = device_sent_ = false;
  staging_.pop_front();
  if (world_.plant(Plant::release_before_ack)) node_.gate()->release_through(epoch);
  return carry_out(core_.sent(epoch, commit.digest)) ? Step::worked : Step::died;
}

Status PrimaryShell::on_frame(const ckpt::FrameView& frame) {
  if (!core_.link_wanted()) return {};
  core_.heard(now());
  if (frame.type() == FrameType::refuse || frame.type() == FrameType::goodbye) {
    ckpt::Refuse refuse;
    REMUSD_TRY(ckpt::decode(frame.body, &refuse));
    carry_out(core_.refused(Status(Code::unavailable, "the backup refused: " + refuse.reason), now()));
    return {};
  }
  if (handshake_ && !frame.optional()) {
    REMUSD_TRY(handshake_->on_frame(frame));
    if (handshake_->agreed()) reader_.set_generation(core_.generation());
    if (handshake_->ready()) {
      handshake_.reset();
      carry_out(core_.standby_ready(now()));
    } else {
      (void)pump_handshake();
    }
    return {};
  }
  if (frame.type() == FrameType::ack) return on_ack(frame);
  if (frame.type() == FrameType::order) {
    carry_out(core_.order_switchover(now()));
    return {};
  }
  if (frame.optional()) return {};
  return {Code::corrupt, "a frame out of its turn"};
}

Status PrimaryShell::on_ack(const ckpt::FrameView& frame) {
  ckpt::Ack ack;
  REMUSD_TRY(ckpt::decode(frame.body, &ack));
  const uint64_t before = core_.acked_epoch();
  if (!node_.step()) return {};  // Between the acknowledgement and the release.
  if (!carry_out(core_.acked(frame.header.generation, frame.header.epoch, ack.digest, now()))) return {};
  const uint64_t acked = core_.acked_epoch();
  if (acked == before) return {};
  world_.note(host_, "is acknowledged epoch", acked);
  world_.stats().epochs += acked - before;
  slots_used_ -= static_cast<uint32_t>(acked - before);
  if (std::exchange(waits_for_slot_, false)) world_.at_host(host_, microseconds(50), [this] { epoch(); });
  return {};
}

/// False when this host died on the way.
bool PrimaryShell::carry_out(const primary::Actions& actions) {
  for (const primary::Action& action : actions) {
    if (!node_.step()) return false;
    carry_out(action);
    if (died()) return false;
  }
  return true;
}

void PrimaryShell::carry_out(const primary::Action& action) {
  switch (action.kind) {
    case Kind::start_epochs:
      epochs_run_ = true;
      world_.at_host(host_, milliseconds(1), [this] { first_sync(); });
      return;
    case Kind::stop_epochs:
      stop_epochs_ = true;
      if (!core_.may_send()) staging_stopped_ = true;
      // It may be in its pause, or wait for its time: it ends soon.
      world_.at_host(host_, world_.random().between(microseconds(10), milliseconds(5)),
                     [this] { end_epochs(); });
      return;
    case Kind::last_epoch:
      // One that is under way or due is not the last: it did not begin with that order.
      last_wanted_ = true;
      world_.at_host(host_, world_.random().between(microseconds(10), milliseconds(5)), [this] { epoch(); });
      return;
    case Kind::let_run:
      stands_ = false;
      return;
    case Kind::release_through:
      if (!world_.plant(Plant::lose_release)) node_.gate()->release_through(action.number);
      return;
    case Kind::ask_arbiter:
      if (world_.plant(Plant::two_unplugs)) node_.gate()->pass();
      return ask(action.number);
    case Kind::pass_output:
      world_.note(host_, "lets output pass");
      ++world_.stats().passes;
      site_.checkers.passed(session_, host_, nonce_, site_.nodes[other(host_)]->passes());
      return node_.gate()->pass();
    case Kind::fence:
      world_.note(host_, "is fenced");
      ++world_.stats().fences;
      if (world_.plant(Plant::resume_after_losing)) return node_.gate()->pass();
      return node_.gate()->shut();
    case Kind::send_order:
      body_.clear();
      ckpt::encode(ckpt::Order{core_.planned() ? ckpt::OrderKind::switchover : ckpt::OrderKind::failover},
                   &body_);
      (void)send(FrameType::order, 0, body_);
      return;
    case Kind::send_goodbye: {
      ckpt::Refuse goodbye;
      goodbye.code = core_.end().code();
      goodbye.reason = "protection ends";
      body_.clear();
      ckpt::encode(goodbye, &body_);
      (void)send(FrameType::goodbye, 0, body_);
      saying_goodbye_ = true;
      return;
    }
    case Kind::close_link:
      return close_link();
    case Kind::report:
      world_.note(host_, primary::to_string(core_.state()), core_.generation());
      return;
  }
}

void PrimaryShell::close_link() {
  close_at_ = now() + (saying_goodbye_ ? kDrainTimeout : Duration::zero());
  staging_stopped_ = true;
  // An epoch thread that waits for room gets none any more.
  if (last_wanted_) world_.at_host(host_, microseconds(50), [this] { end_epochs(); });
  wake();
}

void PrimaryShell::ask(uint64_t expected_generation) {
  arbiter::Record desired;
  desired.generation = expected_generation + 1;
  desired.owner = name_of(host_);
  desired.epoch = core_.acked_epoch();
  desired.nonce = nonce_;
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

/// GuestHost::settle(): the protection ended and has no thread that goes on.
void PrimaryShell::settle() {
  if (!core_.final() || epochs_run_ || open()) return;
  gone_ = true;
  const bool fenced = core_.state() == primary::State::fenced;
  const bool lost = guest_gone() || (fenced && !world_.plant(Plant::resume_after_losing));
  node_.protection_ended(lost);
}

// The epoch thread: Capture::protect().

void PrimaryShell::put_pages(std::vector<uint64_t> pages, uint64_t epoch) {
  const std::span<const std::byte> memory = node_.guest()->memory();
  for (size_t first = 0; first < pages.size(); first += kPagesPerFrame) {
    Item item{.kind = Item::Kind::pages, .epoch = epoch, .pages = {}, .data = {}};
    for (size_t i = first; i < std::min(first + kPagesPerFrame, pages.size()); ++i) {
      const std::span<const std::byte> page = memory.subspan(pages[i] * kPageSize, kPageSize);
      item.pages.push_back(pages[i]);
      item.data.insert(item.data.end(), page.begin(), page.end());
    }
    staging_.push_back(std::move(item));
  }
}

/// What the guest wrote, whether or not its own disk took it: as disk/tap.h, which hears of it before.
void PrimaryShell::put_blocks(const std::vector<uint32_t>& blocks, uint64_t epoch) {
  if (blocks.empty()) return;
  for (const uint32_t block : blocks) {
    const BlockBytes bytes = block_of(node_.guest()->disk()[block]);
    const bool taken =
        disk_body_.add({0, place_of(block), kBlockBytes, ckpt::DiskEncoding::raw, ckpt::View(bytes)});
    REMUSD_ASSERT(taken, "so few blocks fit into a body");
  }
  Item item{.kind = Item::Kind::disk, .epoch = epoch, .pages = {}, .data = {}};
  item.raw_bytes = disk_body_.raw_bytes();
  disk_body_.take(&item.data);
  staging_.push_back(std::move(item));
}

void PrimaryShell::first_sync() {
  if (stop_epochs_ || !node_.guest()) return;
  node_.guest()->mark_all_dirty();
  put_pages(node_.guest()->take_dirty(), 1);
  (void)node_.guest()->take_written();
  put_blocks({0, 1, 2, 3}, 1);
  wake();
  world_.at_host(host_, world_.random().between(milliseconds(1), milliseconds(20)), [this] { epoch(); });
}

void PrimaryShell::epoch() {
  if (stop_epochs_ || staging_stopped_ || !node_.guest()) return last_wanted_ ? end_epochs() : void();
  if (in_epoch_ || epochs_ended_) return;
  if (slots_used_ == primary::kMaxInFlight) {
    waits_for_slot_ = true;
    return;
  }
  ++slots_used_;
  in_epoch_ = true;
  // From here to the end of the pause nobody stops it.
  world_.at_host(host_, world_.random().between(microseconds(50), milliseconds(2)), [this] { pause(); });
}

/// Pause, seal, copy, save, resume: the guest does nothing meanwhile.
void PrimaryShell::pause() {
  in_epoch_ = false;
  if (failure_ != Failure::none) {
    --slots_used_;
    return end_epochs();
  }
  Guest& guest = *node_.guest();
  const uint64_t number = next_epoch_++;
  if (number == 1) {
    node_.gate()->hold(session_);
    staging_.push_back({.kind = Item::Kind::holding, .epoch = 0, .pages = {}, .data = {}});
  } else {
    guest.work();
  }
  if (!node_.step()) return;
  node_.gate()->seal(number);
  said_in_ = number + 1;
  put_pages(guest.take_dirty(), number);
  if (!node_.step()) return;
  put_blocks(guest.take_written(), number);
  ckpt::Bytes device = guest.save();
  site_.checkers.sealed(session_, guest.memory(), device, guest.disk());
  world_.note(host_, "sealed epoch", number);
  staging_.push_back({.kind = Item::Kind::sealed, .epoch = number, .pages = {}, .data = std::move(device)});
  wake();
  if (last_wanted_) {
    stands_ = true;
    world_.note(host_, "has its guest stand");
    return end_epochs();
  }
  if (end_wanted_) return end_epochs();
  world_.at_host(host_, site_.timing.epoch_interval, [this] { epoch(); });
}

bool PrimaryShell::fail_guest(bool gone) {
  if (!epochs_run_ || epochs_ended_) return false;
  failure_ = gone ? Failure::gone : Failure::error;
  stop_epochs_ = true;
  end_epochs();
  return true;
}

void PrimaryShell::end_epochs() {
  end_wanted_ = true;
  if (in_epoch_ || std::exchange(epochs_ended_, true)) return;
  staging_.push_back({.kind = Item::Kind::stopped, .epoch = 0, .pages = {}, .data = {}});
  wake();
}

}  // namespace remusd::simulate
