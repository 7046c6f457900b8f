// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/checkers.h"

#include <algorithm>

namespace remusd::simulate {
namespace {

std::string number(uint64_t value) {
  return std::to_string(value);
}

}  // namespace

std::string Checkers::about(uint64_t session) const {
  return " (session of generation " + number(sessions_[session - 1].generation) + ")";
}

uint64_t Checkers::session_begins(HostId primary, uint64_t generation) {
  Session session;
  session.primary = primary;
  session.generation = generation;
  sessions_.push_back(std::move(session));
  return sessions_.size();
}

uint64_t Checkers::find_session(uint64_t generation) const {
  for (size_t i = sessions_.size(); i > 0; --i) {
    if (sessions_[i - 1].generation == generation) return i;
  }
  return 0;
}

void Checkers::sealed(uint64_t session, std::span<const std::byte> memory, std::span<const std::byte> device,
                      const Blocks& disk) {
  sessions_[session - 1].epochs.push_back({image_digest(memory, device), disk});
}

void Checkers::record_installed(const arbiter::Record& record, bool asker_lives) {
  record_ = record;
  owner_died_ = !asker_lives;
  if (std::find(unloaded_.begin(), unloaded_.end(), record.nonce) != unloaded_.end()) {
    world_.violation("loss: host " + record.owner + " takes a guest that it could not load");
  }
}

void Checkers::load_failed(const std::string& nonce, bool planned) {
  if (!planned) return excuse_loss();
  unloaded_.push_back(nonce);
  if (record_.nonce == nonce) {
    world_.violation("loss: host " + record_.owner + " has taken a guest that it cannot load");
  }
}

void Checkers::host_crashed(HostId host) {
  if (record_.owner == name_of(host)) owner_died_ = true;
}

void Checkers::disk_is_applied(HostId host, uint64_t session, uint64_t epoch, const Blocks& disk) {
  const std::vector<Epoch>& epochs = sessions_[session - 1].epochs;
  if (epoch <= epochs.size() && disk == epochs[epoch - 1].disk) return;
  world_.violation("image: the disk on host " + std::string(name_of(host)) + " is not that of epoch " +
                   number(epoch) + about(session));
}

void Checkers::disk_is_recovered(HostId host, const Status& status, const disk::Recovered& recovered,
                                 const Blocks& disk) {
  const DiskTruth& truth = disks_[host];
  if (truth.session == 0 || truth.guests) return;
  const std::string who = "host " + std::string(name_of(host)) + about(truth.session);
  if (!status.ok()) return world_.violation("disk: cannot be recovered: " + who + ": " + status.message());
  if (recovered.state != disk::ReplicaState::consistent) {
    if (truth.durable == 0 || truth.begun) return;
    return world_.violation("disk: nobody's, after epoch " + number(truth.durable) + " was durable: " + who);
  }
  const Session& session = sessions_[truth.session - 1];
  if (recovered.generation != session.generation) {
    return world_.violation("disk: of generation " + number(recovered.generation) + ": " + who);
  }
  if (recovered.epoch == 0 || recovered.epoch > session.staged) {
    return world_.violation("disk: of epoch " + number(recovered.epoch) + ", which was not staged: " + who);
  }
  // Those without a change are not in the journal.
  for (uint64_t epoch = recovered.epoch; epoch <= std::max(recovered.epoch, truth.durable); ++epoch) {
    if (disk == session.epochs[epoch - 1].disk) continue;
    return world_.violation("disk: recovered as epoch " + number(recovered.epoch) + ", it is not epoch " +
                            number(epoch) + "; " + number(truth.durable) + " was durable: " + who);
  }
}

void Checkers::counters(uint64_t session, uint64_t released, uint64_t acked, uint64_t sent, uint64_t sealed) {
  const uint64_t staged = sessions_[session - 1].staged;
  if (released <= acked && acked <= sent && sent <= sealed && acked <= staged) return;
  world_.violation("release: released " + number(released) + ", acked " + number(acked) + ", sent " +
                   number(sent) + ", sealed " + number(sealed) + ", staged by the backup " + number(staged) +
                   about(session));
}

/// By output commit, or by the right to run alone.
bool Checkers::may_speak(HostId host, const Packet& packet, std::string* why) const {
  const bool owner = record_.owner == name_of(host);
  if (packet.session == 0) {
    if (!owner) *why = "outside any session, and " + record_.owner + " holds the right to run";
    return owner;
  }
  const Session& session = sessions_[packet.session - 1];
  if (packet.epoch <= session.staged) return true;
  if (owner && (!session.committed || record_.generation > session.generation)) return true;
  *why = "in epoch " + number(packet.epoch) + ", the backup has staged " + number(session.staged) +
         ", generation " + number(record_.generation) + " is " + record_.owner + "'s" + about(packet.session);
  return false;
}

void Checkers::heard(HostId host, const Gate::Departure& departure) {
  const Packet& packet = departure.packet;
  world_.note(host, departure.passed ? "is heard, passing, answer" : "is heard, released, answer",
              packet.number);
  std::string why;
  if (!may_speak(host, packet, &why)) {
    return world_.violation("release: host " + std::string(name_of(host)) + " is heard with answer " +
                            number(packet.number) + ", said " + why);
  }
  hear(packet);
}

void Checkers::hear(const Packet& packet) {
  if (heard_.size() <= packet.life) heard_.resize(packet.life + 1);
  std::vector<uint64_t>& log = heard_[packet.life];
  if (log.size() < packet.number) log.resize(packet.number);
  uint64_t& slot = log[packet.number - 1];
  if (slot != 0 && slot != packet.content) {
    return world_.violation("client: answer " + number(packet.number) + " is heard with two contents");
  }
  slot = packet.content;
  if (packet.number > 1 && log[packet.number - 2] != 0 && log[packet.number - 2] != packet.before) {
    return world_.violation("client: answer " + number(packet.number) +
                            " does not continue what was heard before it");
  }
  answered_ = std::max(answered_, packet.request);
}

void Checkers::image(uint64_t session, uint64_t epoch, std::span<const std::byte> memory,
                     std::span<const std::byte> device) {
  const Session& truth = sessions_[session - 1];
  if (epoch == 0 || epoch > truth.epochs.size()) {
    return world_.violation("image: epoch " + number(epoch) + " was never sealed" + about(session));
  }
  if (image_digest(memory, device) == truth.epochs[epoch - 1].digest) return;
  world_.violation("image: memory and device are not those of epoch " + number(epoch) + about(session));
}

void Checkers::promoted(uint64_t session, HostId host, uint64_t epoch, const std::string& nonce,
                        const Guest& guest, bool other_passes) {
  const Session& truth = sessions_[session - 1];
  const std::string who = "host " + std::string(name_of(host)) + about(session);
  if (record_.owner != name_of(host) || record_.nonce != nonce ||
      record_.generation != truth.generation + 1) {
    return world_.violation("heard: promoted without the right to run: " + who + "; generation " +
                            number(record_.generation) + " is " + record_.owner + "'s");
  }
  if (other_passes) return world_.violation("heard: promoted while the other side is heard: " + who);
  if (epoch != truth.staged) {
    return world_.violation("image: promoted epoch " + number(epoch) + " where " + number(truth.staged) +
                            " was staged: " + who);
  }
  if (guest.life() < heard_.size() && heard_[guest.life()].size() > guest.answers()) {
    world_.violation("client: answer " + number(heard_[guest.life()].size()) +
                     " was heard, the promoted guest remembers " + number(guest.answers()));
  }
}

void Checkers::passed(uint64_t session, HostId host, const std::string& nonce, bool other_passes) {
  const Session& truth = sessions_[session - 1];
  const bool won = record_.owner == name_of(host) && record_.nonce == nonce;
  if (truth.committed && !won) {
    return world_.violation("heard: host " + std::string(name_of(host)) + " passes without the right to run" +
                            about(session));
  }
  if (other_passes) world_.violation("heard: both sides pass" + about(session));
}

void Checkers::guest_lost() {
  if (owner_died_ || loss_excused_) return;
  world_.violation("loss: nobody has the guest, though host " + record_.owner + ", which won generation " +
                   number(record_.generation) + ", has lived since");
}

}  // namespace remusd::simulate
