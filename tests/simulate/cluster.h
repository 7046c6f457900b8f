// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One seed: two hosts, their network, the arbiter, a client, an operator and the faults. The operator does
// what people or a cluster manager would: starts the guest, restarts hosts, protects the guest again from
// where it runs, gives an order at times. Each seed enables its own subset of faults, and how many
// (swarm testing; Groce and others, ISSTA 2012), for a time; then all is well, and within kLivenessBound the
// guest must be protected again and answer.
//
// docs/faults.md 1 to 5, 7 to 9, 11, 13 to 15, 17 to 24, 26, 27, 32, 34, 38 to 41.
#pragma once

#include <string>
#include <vector>

#include "tests/simulate/node.h"

namespace remusd::simulate {

inline constexpr Duration kLivenessBound = std::chrono::seconds(10);

class Cluster {
 public:
  Cluster(uint64_t seed, Plant plant, std::string* trace);
  void run();
  const World& world() const { return world_; }
  World& world() { return world_; }

 private:
  enum class Fault {
    cut_both,
    cut_one_way,
    reset,
    mute,
    crash,
    crash_at_step,
    freeze,
    clock_jump,
    arbiter_outage,
    arbiter_cut,
    guest_fails,
    replica_dropped,
    load_fails,
    disk_fails,
    disk_full,
    disk_slow,
    power_at_disk,
    order,
  };

  void plan();
  void next_fault();
  void inject(Fault fault);
  void end_faults();
  void ask_client();
  void operate();
  void restart_hosts();
  void start_or_protect();
  bool recovered() const;
  Node& any_node() { return world_.random().chance(50) ? a_ : b_; }
  Node& node_of(HostId host) { return host == kA ? a_ : b_; }

  World world_;
  Checkers checkers_;
  Network network_;
  ArbiterService arbiter_;
  Site site_;
  Node a_, b_;

  std::vector<Fault> faults_;
  Duration fault_spacing_{};
  bool faults_over_ = false;
  bool hasty_ = false;  // the operator starts the guest wherever he may
  uint64_t request_ = 0;
  uint64_t must_answer_ = 0;  // the first request after the faults
  std::array<bool, kHosts> restarting_{};
  uint64_t lives_lost_ = 0;
  Time not_before_{};  // the operator waits before the next order
};

}  // namespace remusd::simulate
