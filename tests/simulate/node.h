// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One host: what it has (disk, guest, gate, the shell of one side), what an operator may order, and its
// death. control/guest_host.h in small; the shells stand in primary_shell.h and backup_shell.h.
//
// A host may be told to die after so many steps more: step() stands between any two actions of its shells.
// Whoever calls it and gets false must return at once and touch nothing.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/simulate/arbiter_service.h"
#include "tests/simulate/checkers.h"
#include "tests/simulate/gate.h"
#include "tests/simulate/guest.h"
#include "tests/simulate/local_disk.h"
#include "tests/simulate/network.h"

namespace remusd::simulate {

class Node;
class PrimaryShell;
class BackupShell;
class ReplicaShell;

/// Times of a run, chosen by the seed.
struct Timing {
  Duration epoch_interval = milliseconds(25);
  Duration heartbeat_interval = milliseconds(20);
  int heartbeat_lost = 5;
  Duration connect_timeout = milliseconds(100);
  Duration handshake_timeout = milliseconds(800);
  Duration arbiter_timeout = milliseconds(150);
};

/// What all shells of a run work with.
struct Site {
  World& world;
  Network& network;
  ArbiterService& arbiter;
  Checkers& checkers;
  Timing timing;
  std::array<Node*, kHosts> nodes{};
  uint64_t lives = 0;  // guests that were started from nothing
};

inline constexpr Duration kDiskDelay = microseconds(300);

class Node {
 public:
  Node(Site& site, HostId id);
  ~Node();

  // Orders. They answer at once; what follows is seen in the state.
  void start();
  void protect();
  void unprotect();
  void failover();
  void switchover();
  void drop_replica();
  /// `gone`: the hypervisor died; else it failed at one thing and the guest goes on.
  void fail_guest(bool gone);
  /// From now on no standby can be loaded here, until it is over.
  void fail_loads(bool fail) { loads_fail_ = fail; }

  /// A request of the client's reached this host's wire.
  void receive(uint64_t request);

  // Life and death.
  bool step();
  void crash_after(uint32_t steps) { steps_left_ = steps; }
  /// `kernel_lives`: the daemon and the guest were killed, and their connections end; else silence.
  void crash(bool kernel_lives);
  void restart();

  HostId id() const { return id_; }
  Site& site() { return site_; }
  LocalDisk& disk() { return disk_; }
  /// The most that an operation on it takes.
  Duration disk_delay() const { return disk_delay_; }
  void slow_disk(Duration delay) { disk_delay_ = delay; }
  std::optional<Guest>& guest() { return guest_; }
  Gate* gate() { return gate_; }
  bool busy() const { return busy_; }
  bool has_session() const { return backup_ != nullptr; }
  bool is_protecting() const;
  bool protection_lives() const { return primary_ != nullptr; }
  bool passes() const;
  std::string next_nonce();

  // By the shells.
  bool admits() const { return !guest_ && !busy_; }
  /// The disk is this replica's from now on, or a guest's (null): one before it ends.
  void give_disk(ReplicaShell* replica);
  bool loads_fail() const { return loads_fail_; }
  void protection_ended(bool guest_gone);
  void session_ended();
  void adopt(Guest guest);

 private:
  void accept(Connection* connection);
  void win_next_generation(std::function<void(uint64_t)> won);
  Gate* new_gate();
  void recover_disk();

  Site& site_;
  const HostId id_;
  LocalDisk disk_;
  Duration disk_delay_ = kDiskDelay;
  std::optional<Guest> guest_;
  Gate* gate_ = nullptr;
  PrimaryShell* primary_ = nullptr;
  BackupShell* backup_ = nullptr;
  ReplicaShell* replica_ = nullptr;
  bool loads_fail_ = false;
  bool busy_ = false;  // an order is being carried out
  uint32_t steps_left_ = 0;
  uint64_t nonces_ = 0;
  // Events may still name them: all live as long as the run.
  std::vector<std::unique_ptr<PrimaryShell>> primaries_;
  std::vector<std::unique_ptr<BackupShell>> backups_;
  std::vector<std::unique_ptr<Gate>> gates_;
};

}  // namespace remusd::simulate
