// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The primary's core under test, with what it ordered so far.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "primary/core.h"

namespace remusd::primary {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = Action::Kind;

inline constexpr uint64_t kGeneration = 7;
inline constexpr Time kStart{seconds(1000)};

inline uint64_t digest(uint64_t epoch) {
  return 1000 + epoch;
}
inline Status broken() {
  return Status(Code::unavailable, "broken");
}

inline arbiter::Answer won() {
  arbiter::Answer answer;
  answer.verdict = arbiter::Verdict::won;
  return answer;
}
inline arbiter::Answer lost(uint64_t generation = kGeneration + 1, const std::string& nonce = "theirs") {
  arbiter::Answer answer;
  answer.verdict = arbiter::Verdict::lost;
  answer.current = arbiter::Record{generation, "b", "boot", 0, nonce, ""};
  return answer;
}
inline arbiter::Answer unknown() {
  arbiter::Answer answer;
  answer.why = Status(Code::timed_out, "no answer");
  return answer;
}

inline CoreConfig config() {
  CoreConfig config;
  config.generation = kGeneration;
  config.nonce = "ours";
  config.node = "a";
  config.peer = "b";
  return config;
}

/// A core and what it ordered so far.
struct Bench {
  Core core{config(), kStart};
  Time now = kStart;
  std::vector<Kind> log;

  void take(const Actions& actions) {
    for (const Action& action : actions) log.push_back(action.kind);
  }
  size_t count(Kind kind) const { return static_cast<size_t>(std::count(log.begin(), log.end(), kind)); }
  size_t at(Kind kind) const {
    return static_cast<size_t>(std::find(log.begin(), log.end(), kind) - log.begin());
  }
  void seal(uint64_t epoch) {
    if (epoch == 1) core.holding();
    core.sealed(epoch);
  }
  void commit(uint64_t epoch) {
    seal(epoch);
    take(core.sent(epoch, digest(epoch)));
  }
  void ack(uint64_t epoch) { take(core.acked(kGeneration, epoch, digest(epoch), now)); }
  void to_syncing() {
    take(core.link_up(now));
    take(core.standby_ready(now));
  }
  void to_protecting() {
    to_syncing();
    commit(1);
    ack(1);
  }
  void lose() { take(core.link_lost(broken(), now)); }
  void stop() { take(core.epochs_stopped(now)); }
};

}  // namespace remusd::primary
