// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What must hold, judged from outside: the checkers keep their own truth of each session (what was sealed,
// what the backup's store has staged whole, who holds the right to run) and compare with it whatever is
// heard, committed, promoted or lost. They change nothing.
//
//   release   what leaves a host was said in an epoch that the backup has staged, or the host holds the right
//             to run and no backup can have it; released <= acked <= sent <= sealed, acked <= staged
//   image     memory and device state of a committed image are those of one sealed epoch, and so is the disk
//             whenever an epoch was applied to it, and when a guest is to run on it
//   heard     promoted only with the right to run, passing only with it, never both at a time
//   client    answers continue one history: no answer is heard twice with different content, and a promoted
//             guest remembers all that was heard
//   disk      after a crash, and a recovery that was cut off by another, the replica's disk is exactly one
//             epoch, at least the newest that was said to be durable, or known to be nobody's; a guest reads
//             what it wrote, wherever it runs
//   loss      a guest is lost only with a host that had the right to run it, and nobody wins the right to run
//             a guest that stands elsewhere and could not be loaded
//   liveness  (cluster.h) protected again, and answering, within a bound after the faults
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "arbiter/arbiter.h"
#include "disk/journal.h"
#include "tests/simulate/gate.h"
#include "tests/simulate/guest.h"

namespace remusd::simulate {

class Checkers {
 public:
  explicit Checkers(World& world) : world_(world) {}

  // Truth.
  uint64_t session_begins(HostId primary, uint64_t generation);
  void sealed(uint64_t session, std::span<const std::byte> memory, std::span<const std::byte> device,
              const Blocks& disk);
  void commit_queued(uint64_t session) { sessions_[session - 1].committed = true; }
  void staged(uint64_t session, uint64_t epoch) { sessions_[session - 1].staged = epoch; }
  void record_installed(const arbiter::Record& record, bool asker_lives);
  void host_crashed(HostId host);
  /// The session whose requests have that nonce could not load its guest, which stands on its primary when
  /// that was `planned`. Else nobody has it any more who is not lost.
  void load_failed(const std::string& nonce, bool planned);
  /// The guest ended by itself, or an operator ended what was left of it.
  void excuse_loss() { loss_excused_ = true; }
  void guest_started() { loss_excused_ = false; }
  // A host's disk, as the replica there calls it: about to be nobody's, nobody's, durable in the journal, to
  // be run on. `new`: of a guest that was started.
  void disk_is_begun(HostId host) { disks_[host].begun = true; }
  void disk_is_nobodys(HostId host, uint64_t session) { disks_[host] = {.session = session}; }
  void disk_is_durable(HostId host, uint64_t epoch) { disks_[host].durable = epoch; }
  void disk_is_drained(HostId host) { disks_[host].guests = true; }
  void disk_is_new(HostId host) { disks_[host] = {.guests = true}; }
  /// The session of that generation; 0: none.
  uint64_t find_session(uint64_t generation) const;

  // Judgements.
  void heard(HostId host, const Gate::Departure& departure);
  void counters(uint64_t session, uint64_t released, uint64_t acked, uint64_t sent, uint64_t sealed);
  void image(uint64_t session, uint64_t epoch, std::span<const std::byte> memory,
             std::span<const std::byte> device);
  void disk_is_applied(HostId host, uint64_t session, uint64_t epoch, const Blocks& disk);
  void disk_is_recovered(HostId host, const Status& status, const disk::Recovered& recovered,
                         const Blocks& disk);
  void promoted(uint64_t session, HostId host, uint64_t epoch, const std::string& nonce, const Guest& guest,
                bool other_passes);
  void passed(uint64_t session, HostId host, const std::string& nonce, bool other_passes);
  void guest_lost();

  /// The newest request that was answered.
  uint64_t answered() const { return answered_; }

 private:
  struct Epoch {
    uint64_t digest = 0;
    Blocks disk{};
  };
  struct Session {
    HostId primary = kA;
    uint64_t generation = 0;
    bool committed = false;  // a COMMIT was queued: the backup may have an image
    uint64_t staged = 0;
    std::vector<Epoch> epochs;  // by number - 1
  };
  struct DiskTruth {
    uint64_t session = 0;  // 0: no replica was ever here
    uint64_t durable = 0;  // epoch
    bool begun = false;    // another session's is
    bool guests = false;   // a guest runs on it, or will: a replica's rules have an end
  };

  bool may_speak(HostId host, const Packet& packet, std::string* why) const;
  void hear(const Packet& packet);
  std::string about(uint64_t session) const;

  World& world_;
  arbiter::Record record_;
  bool owner_died_ = false, loss_excused_ = false;
  std::vector<std::string> unloaded_;  // nonces of sessions that could not load a guest that stands
  std::vector<Session> sessions_;
  std::vector<std::vector<uint64_t>> heard_;  // by life, then by number - 1: content; 0: not heard
  std::array<DiskTruth, kHosts> disks_;
  uint64_t answered_ = 0;
};

}  // namespace remusd::simulate
