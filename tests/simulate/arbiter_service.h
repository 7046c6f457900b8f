// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The arbiter as the hosts meet it: one linear record; requests that are lost, that commit unheard, that
// commit long after their sender gave up; answers that come late or not at all; outages; reads and the
// `current` of a refusal that show an older record than the newest (stronger than the contract allows: safety
// must not rest on it). acquire() is arbiter::acquire() in virtual time.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arbiter/arbiter.h"
#include "tests/simulate/world.h"

namespace remusd::simulate {

struct ArbiterFaults {
  bool down = false;
  std::array<bool, kHosts> cut{};  // a host does not reach it
  uint32_t ambiguous_percent = 0;  // committed, or not, and no answer
  uint32_t late_percent = 0;       // arrives after any patience
  uint32_t stale_percent = 0;
  uint32_t crash_percent = 0;  // the asker dies between the commit and the answer
};

class ArbiterService {
 public:
  /// `installed` runs when a record was: who asked for it, and whether that incarnation lives.
  using Installed = std::function<void(const arbiter::Record&, HostId, bool alive)>;
  ArbiterService(World& world, Installed installed, std::function<void(HostId)> crash)
      : world_(world), installed_(std::move(installed)), crash_(std::move(crash)) {}

  ArbiterFaults& faults() { return faults_; }
  const arbiter::Record& record() const { return record_; }  // generation 0: none yet

  using Done = std::function<void(const arbiter::Answer&)>;
  void acquire(HostId host, const arbiter::Record& desired, Duration timeout, Done done);
  void read(HostId host, Duration timeout, std::function<void(Result<std::optional<arbiter::Record>>)> done);

 private:
  struct Request {
    HostId host;
    uint32_t incarnation = 0;
    arbiter::Record desired;
    Time give_up;
    Done done;
  };
  void attempt(const std::shared_ptr<Request>& request);
  arbiter::Answer swap(const Request& request);
  void answer(const std::shared_ptr<Request>& request, Duration delay, const arbiter::Answer& answer);
  bool away(HostId host) const { return faults_.down || faults_.cut[host]; }
  std::optional<arbiter::Record> seen();

  World& world_;
  Installed installed_;
  std::function<void(HostId)> crash_;
  ArbiterFaults faults_;
  arbiter::Record record_;
  std::vector<arbiter::Record> older_;
};

}  // namespace remusd::simulate
