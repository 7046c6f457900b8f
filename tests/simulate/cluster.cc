// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/cluster.h"

#include <algorithm>
#include <cerrno>
#include <functional>

namespace remusd::simulate {
namespace {

constexpr Duration kOperatorLook = milliseconds(15);
constexpr Duration kRequestMin = milliseconds(4), kRequestMax = milliseconds(20);

}  // namespace

Cluster::Cluster(uint64_t seed, Plant plant, std::string* trace)
    : world_(seed, plant, trace),
      checkers_(world_),
      network_(world_),
      arbiter_(
          world_,
          [this](const arbiter::Record& record, HostId, bool alive) {
            checkers_.record_installed(record, alive);
          },
          [this](HostId host) { node_of(host).crash(world_.random().chance(50)); }),
      site_{world_, network_, arbiter_, checkers_, {}, {}, 0},
      a_(site_, kA),
      b_(site_, kB) {}

/// What this seed is about.
void Cluster::plan() {
  Random& random = world_.random();
  site_.timing.epoch_interval = milliseconds(4 + random.below(20));
  NetworkFaults& network = network_.faults();
  network.delay_max = random.chance(25) ? milliseconds(6) : microseconds(400);
  const auto maybe = [&](uint32_t percent, uint32_t value) { return random.chance(percent) ? value : 0u; };
  if (random.chance(15)) network.per_byte = microseconds(1 + random.below(25));
  network.slow_per_mille = maybe(30, 10);
  network.split_per_mille = maybe(30, 100);
  network.flip_per_mille = maybe(15, 3);
  network.bad_sum_per_mille = maybe(15, 5);
  ArbiterFaults& arbiter = arbiter_.faults();
  arbiter.ambiguous_percent = maybe(40, 40);
  arbiter.late_percent = maybe(25, 20);
  arbiter.stale_percent = maybe(25, 40);
  arbiter.crash_percent = maybe(15, 30);
  for (const Fault fault :
       {Fault::cut_both, Fault::cut_one_way, Fault::reset, Fault::mute, Fault::crash, Fault::crash_at_step,
        Fault::freeze, Fault::clock_jump, Fault::arbiter_outage, Fault::arbiter_cut, Fault::order}) {
    if (random.chance(45)) faults_.push_back(fault);
  }
  for (const Fault fault : {Fault::guest_fails, Fault::replica_dropped, Fault::load_fails}) {
    if (random.chance(10)) faults_.push_back(fault);
  }
  for (const Fault fault : {Fault::disk_fails, Fault::disk_full, Fault::disk_slow, Fault::power_at_disk}) {
    if (random.chance(20)) faults_.push_back(fault);
  }
  hasty_ = random.chance(20);
  fault_spacing_ = random.chance(40) ? milliseconds(60) : milliseconds(300);
}

void Cluster::run() {
  plan();
  const Duration fault_time = world_.random().between(milliseconds(600), milliseconds(1600));
  const Time faults_end = world_.now() + fault_time;
  operate();
  ask_client();
  world_.after(world_.random().between(Duration::zero(), milliseconds(200)), [this] { next_fault(); });
  world_.run_until(faults_end, [] { return false; });
  if (world_.violated()) return;
  end_faults();
  world_.run_until(faults_end + kLivenessBound, [this] { return recovered(); });
  if (!world_.violated() && !recovered()) {
    const char* what = a_.is_protecting() || b_.is_protecting() ? "the client is not answered"
                                                                : "the guest is not protected again";
    world_.violation(std::string("liveness: ") + what + " long after the faults");
  }
}

bool Cluster::recovered() const {
  return faults_over_ && checkers_.answered() >= must_answer_ && (a_.is_protecting() || b_.is_protecting());
}

void Cluster::next_fault() {
  if (faults_.empty()) return;
  world_.after(world_.random().between(fault_spacing_ / 6, 2 * fault_spacing_), [this] {
    if (faults_over_) return;
    inject(faults_[world_.random().below(faults_.size())]);
    next_fault();
  });
}

void Cluster::inject(Fault fault) {
  Random& random = world_.random();
  Node& node = any_node();
  const HostId host = node.id();
  switch (fault) {
    case Fault::cut_both:
    case Fault::cut_one_way: {
      const bool both = fault == Fault::cut_both;
      network_.cut(host, true);
      if (both) network_.cut(other(host), true);
      world_.after(random.between(milliseconds(5), milliseconds(400)), [this, host, both] {
        network_.cut(host, false);
        if (both) network_.cut(other(host), false);
      });
      return;
    }
    case Fault::reset:
      world_.note(kOutside, "resets all connections");
      return network_.reset_all();
    case Fault::mute:
      world_.note(kOutside, "forgets all connections");
      return network_.mute_all();
    case Fault::crash:
      return node.crash(random.chance(50));
    case Fault::crash_at_step:
      return node.crash_after(static_cast<uint32_t>(1 + random.below(40)));
    case Fault::freeze: {
      ++world_.stats().freezes;
      world_.note(host, "FREEZES");
      const bool long_freeze = random.chance(50);
      return world_.freeze(host, random.between(milliseconds(1), milliseconds(long_freeze ? 700 : 120)));
    }
    case Fault::clock_jump: {
      world_.note(host, "has its clock jump");
      // Backwards is more than a monotonic clock may do.
      const bool back = random.chance(30);
      return world_.shift_clock(host, back ? -random.between(Duration::zero(), milliseconds(100))
                                           : random.between(Duration::zero(), milliseconds(3000)));
    }
    case Fault::arbiter_outage:
      world_.note(kOutside, "the arbiter goes down");
      arbiter_.faults().down = true;
      world_.after(random.between(milliseconds(10), milliseconds(500)), [this] {
        world_.note(kOutside, "the arbiter comes back");
        arbiter_.faults().down = false;
      });
      return;
    case Fault::arbiter_cut:
      world_.note(host, "does not reach the arbiter");
      arbiter_.faults().cut[host] = true;
      world_.after(random.between(milliseconds(10), milliseconds(500)), [this, host] {
        world_.note(host, "reaches the arbiter again");
        arbiter_.faults().cut[host] = false;
      });
      return;
    case Fault::guest_fails:
      return node.fail_guest(random.chance(50));
    case Fault::replica_dropped:
      return node.drop_replica();
    case Fault::load_fails:
      world_.note(host, "cannot load a guest");
      node.fail_loads(true);
      world_.after(random.between(milliseconds(10), milliseconds(200)), [this, host] {
        world_.note(host, "can load a guest again");
        node_of(host).fail_loads(false);
      });
      if (random.chance(70)) node.switchover();
      return;
    case Fault::disk_fails:
      world_.note(host, "has a disk that fails once");
      node.disk().fail_at(random.below(12), EIO, 1);
      if (random.chance(50)) return;
      // Before whoever went on as if nothing had happened is done with what was lost.
      return world_.after(random.between(milliseconds(5), milliseconds(100)), [this, host] {
        if (!faults_over_) node_of(host).crash(/*kernel_lives=*/false);
      });
    case Fault::disk_full:
      world_.note(host, "has a disk that is full");
      node.disk().fail_at(random.below(12), ENOSPC, disk::Power::kNever);
      world_.after(random.between(milliseconds(10), milliseconds(300)), [this, host] {
        world_.note(host, "has room on its disk again");
        node_of(host).disk().heal();
      });
      return;
    case Fault::disk_slow:
      world_.note(host, "has a slow disk");
      node.slow_disk(random.between(milliseconds(1), milliseconds(60)));
      world_.after(random.between(milliseconds(10), milliseconds(400)), [this, host] {
        world_.note(host, "has a fast disk again");
        node_of(host).slow_disk(kDiskDelay);
      });
      return;
    case Fault::power_at_disk:
      world_.note(host, "will lose power at its disk");
      return node.disk().cut_power_at(random.below(16));
    case Fault::order:
      if (random.chance(40)) {
        world_.note(host, "is ordered to unprotect");
        return node.unprotect();
      }
      if (random.chance(50)) {
        world_.note(host, "is ordered to switch over");
        return node.switchover();
      }
      world_.note(host, "is ordered to fail over");
      return node.failover();
  }
}

void Cluster::end_faults() {
  world_.note(kOutside, "all faults end");
  faults_over_ = true;
  network_.faults() = {};
  arbiter_.faults() = {};
  for (const HostId host : {kA, kB}) {
    network_.cut(host, false);
    node_of(host).crash_after(0);
    node_of(host).fail_loads(false);
    node_of(host).disk().heal();
    node_of(host).slow_disk(kDiskDelay);
  }
  must_answer_ = request_ + 1;
}

/// The client's requests reach every host, as a switch that has forgotten where the guest is sends them.
void Cluster::ask_client() {
  ++world_.stats().requests;
  const uint64_t request = ++request_;
  for (const HostId host : {kA, kB}) {
    if (!world_.up(host)) continue;
    world_.at_host(host, microseconds(100), [this, request, host] { node_of(host).receive(request); });
  }
  world_.after(world_.random().between(kRequestMin, kRequestMax), [this] { ask_client(); });
}

void Cluster::operate() {
  restart_hosts();
  if (world_.now() >= not_before_) start_or_protect();
  world_.after(kOperatorLook, [this] { operate(); });
}

void Cluster::restart_hosts() {
  for (const HostId host : {kA, kB}) {
    if (world_.up(host) || restarting_[host]) continue;
    restarting_[host] = true;
    world_.after(world_.random().between(milliseconds(5), milliseconds(250)), [this, host] {
      restarting_[host] = false;
      node_of(host).restart();
      // Without a look at the other host: what it replicates is given up if this one gets there first.
      if (!hasty_ || arbiter_.record().owner != name_of(host)) return;
      checkers_.excuse_loss();
      node_of(host).start();
    });
  }
}

void Cluster::start_or_protect() {
  const auto idle = [this](Node& node) {
    return world_.up(node.id()) && !node.busy() && !node.guest() && !node.has_session();
  };
  if (idle(a_) && idle(b_)) {
    const std::string owner = arbiter_.record().owner;
    if (lives_lost_ < site_.lives) {
      lives_lost_ = site_.lives;
      ++world_.stats().guests_lost;
      world_.note(kOutside, "the guest is lost, life", site_.lives);
      checkers_.guest_lost();
    }
    return node_of(owner == name_of(kB) ? kB : kA).start();
  }
  for (const HostId host : {kA, kB}) {
    Node& node = node_of(host);
    if (!world_.up(host) || !node.guest()) continue;
    if (node.busy() || node.protection_lives() || !idle(node_of(other(host)))) continue;
    node.protect();
    not_before_ = world_.now() + world_.random().between(milliseconds(20), milliseconds(60));
  }
}

}  // namespace remusd::simulate
