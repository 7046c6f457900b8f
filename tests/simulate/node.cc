// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/node.h"

#include "tests/simulate/backup_shell.h"
#include "tests/simulate/primary_shell.h"

namespace remusd::simulate {

using arbiter::Record;

Node::Node(Site& site, HostId id) : site_(site), id_(id) {
  site_.nodes[id_] = this;
  site_.network.set_listener(id_, [this](Connection* connection) { accept(connection); });
}

Node::~Node() = default;

std::string Node::next_nonce() {
  return std::string(name_of(id_)) + std::to_string(++nonces_);
}

bool Node::step() {
  if (disk_.off()) {
    crash(false);
    return false;
  }
  if (steps_left_ == 0 || --steps_left_ > 0) return true;
  crash(site_.world.random().chance(50));
  return false;
}

void Node::crash(bool kernel_lives) {
  World& world = site_.world;
  if (!world.up(id_)) return;
  kernel_lives = kernel_lives && !disk_.off();
  world.note(id_, kernel_lives ? "CRASH of the daemon and its guest" : "CRASH of the host");
  ++world.stats().crashes;
  steps_left_ = 0;
  // Asks nobody; its packets that are not out are gone with it.
  world.set_up(id_, false);
  site_.network.host_died(id_, kernel_lives);
  if (!kernel_lives) disk_.lose_power(world.random());
  site_.checkers.host_crashed(id_);
  guest_.reset();
  gate_ = nullptr;
  primary_ = nullptr;
  backup_ = nullptr;
  busy_ = false;
}

void Node::restart() {
  if (site_.world.up(id_)) return;
  site_.world.note(id_, "restarts");
  site_.world.set_up(id_, true);
  recover_disk();
}

/// What a guest that is to run here would find, where the host is allowed to come up whole; it may lose power
/// while it replays.
void Node::recover_disk() {
  World& world = site_.world;
  disk::Recovered recovered;
  disk_.heal();
  if (world.random().chance(30)) {
    disk_.cut_power_at(world.random().below(6));
    (void)disk::recover(disk_.journal(), disk_.media(), &recovered);
    disk_.lose_power(world.random());
  }
  const Status status = disk::recover(disk_.journal(), disk_.media(), &recovered);
  if (recovered.replayed_epochs > 0) ++world.stats().replays;
  world.note(id_, "has a disk of epoch", recovered.epoch);
  site_.checkers.disk_is_recovered(id_, status, recovered, disk_.blocks());
}

void Node::give_disk(ReplicaShell* replica) {
  if (replica_ != nullptr) replica_->end();
  replica_ = replica;
}

bool Node::is_protecting() const {
  return primary_ != nullptr && primary_->state() == primary::State::protecting;
}

bool Node::passes() const {
  return site_.world.up(id_) && guest_ && gate_ != nullptr && gate_->mode() == Gate::Mode::passing;
}

void Node::receive(uint64_t request) {
  if (!guest_ || gate_ == nullptr || gate_->mode() == Gate::Mode::shut) return;
  if (primary_ != nullptr && (primary_->guest_gone() || primary_->guest_stands())) return;
  Packet packet = guest_->answer(request);
  if (disk_.off()) return crash(false);
  if (primary_ != nullptr) primary_->stamp(&packet);
  gate_->send(packet);
}

Gate* Node::new_gate() {
  gates_.push_back(std::make_unique<Gate>(
      site_.world, id_, [this](const Gate::Departure& departure) { site_.checkers.heard(id_, departure); }));
  return gates_.back().get();
}

// As arbiter::win_next_generation(): read, see whose it is, swap. 0: not won.
void Node::win_next_generation(std::function<void(uint64_t)> won) {
  busy_ = true;
  site_.arbiter.read(id_, site_.timing.arbiter_timeout, [this, won](const auto& record) {
    if (!record.ok() || (record->has_value() && (*record)->owner != name_of(id_))) return won(0);
    Record desired;
    desired.generation = (record->has_value() ? (*record)->generation : 0) + 1;
    desired.owner = name_of(id_);
    desired.nonce = next_nonce();
    site_.arbiter.acquire(id_, desired, site_.timing.arbiter_timeout,
                          [won, desired](const arbiter::Answer& answer) {
                            won(answer.verdict == arbiter::Verdict::won ? desired.generation : 0);
                          });
  });
}

void Node::start() {
  if (busy_ || guest_ || backup_ != nullptr) return;
  win_next_generation([this](uint64_t generation) {
    busy_ = false;
    if (generation == 0) return;
    const uint64_t life = ++site_.lives;
    site_.checkers.guest_started();
    site_.world.note(id_, "starts the guest, life", life);
    guest_.emplace(site_.world, id_, life);
    give_disk(nullptr);
    disk_.clear();
    site_.checkers.disk_is_new(id_);
    guest_->attach(&disk_);
    gate_ = new_gate();
  });
}

void Node::protect() {
  if (busy_ || !guest_ || primary_ != nullptr) return;
  win_next_generation([this](uint64_t generation) {
    busy_ = false;
    if (generation == 0) return;
    site_.world.note(id_, "protects the guest, generation", generation);
    primaries_.push_back(std::make_unique<PrimaryShell>(*this, generation));
    primary_ = primaries_.back().get();
    primary_->connect();
  });
}

void Node::unprotect() {
  if (primary_ != nullptr) primary_->order_unprotect();
}

void Node::failover() {
  if (primary_ != nullptr) primary_->order_failover();
  if (backup_ != nullptr) backup_->order_failover();
}

void Node::switchover() {
  if (primary_ != nullptr) primary_->order_switchover();
  if (backup_ != nullptr) backup_->order_switchover();
}

void Node::drop_replica() {
  if (backup_ == nullptr) return;
  site_.world.note(id_, "is ordered to drop its replica");
  site_.checkers.excuse_loss();
  backup_->order_end();
}

void Node::fail_guest(bool gone) {
  if (primary_ == nullptr || !primary_->fail_guest(gone)) return;
  site_.world.note(id_, gone ? "has its guest die" : "has an error of the guest's driver");
  if (gone) site_.checkers.excuse_loss();
}

void Node::accept(Connection* connection) {
  if (backup_ != nullptr) {
    // One session per guest: GuestHost::admit() refuses the second after its HELLO; here it just ends.
    return site_.network.close(connection, id_);
  }
  backups_.push_back(std::make_unique<BackupShell>(*this, connection));
  backup_ = backups_.back().get();
  backup_->begin();
}

void Node::protection_ended(bool guest_gone) {
  primary_ = nullptr;
  if (!guest_gone) return;
  guest_.reset();
  gate_ = nullptr;
}

void Node::session_ended() {
  backup_ = nullptr;
}

void Node::adopt(Guest guest) {
  guest_ = std::move(guest);
  guest_->attach(&disk_);
  gate_ = new_gate();
}

}  // namespace remusd::simulate
