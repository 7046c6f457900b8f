// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/arbiter_service.h"

#include <memory>

namespace remusd::simulate {
namespace {

using arbiter::Answer;
using arbiter::Record;
using arbiter::Verdict;

constexpr Duration kRetryPause = milliseconds(10);
constexpr Duration kWayMin = microseconds(200), kWayMax = milliseconds(4);
constexpr Duration kLateMax = milliseconds(1500);

}  // namespace

/// The record as an answer shows it: at times one from a member that was cut off.
std::optional<Record> ArbiterService::seen() {
  if (!older_.empty() && world_.random().chance(faults_.stale_percent)) {
    const Record& old = older_[world_.random().below(older_.size())];
    if (old.generation == 0) return std::nullopt;
    return old;
  }
  if (record_.generation == 0) return std::nullopt;
  return record_;
}

void ArbiterService::read(HostId host, Duration timeout,
                          std::function<void(Result<std::optional<Record>>)> done) {
  Random& random = world_.random();
  const bool silent = away(host) || random.chance(faults_.ambiguous_percent);
  if (silent) {
    world_.at_host(host, timeout, [done] { done(Status(Code::timed_out, "the arbiter did not answer")); });
    return;
  }
  const std::optional<Record> record = seen();
  world_.at_host(host, random.between(kWayMin, 2 * kWayMax), [done, record] { done(record); });
}

void ArbiterService::acquire(HostId host, const Record& desired, Duration timeout, Done done) {
  auto request = std::make_shared<Request>();
  request->host = host;
  request->incarnation = world_.incarnation(host);
  request->desired = desired;
  request->give_up = world_.now() + timeout;
  request->done = std::move(done);
  world_.note(host, "asks the arbiter for generation", desired.generation);
  attempt(request);
}

Answer ArbiterService::swap(const Request& request) {
  if (record_.generation + 1 != request.desired.generation) return {Verdict::lost, seen(), {}};
  older_.push_back(record_);
  record_ = request.desired;
  world_.note(kOutside, "the arbiter installs, for " + record_.nonce + ", generation", record_.generation);
  const bool alive = world_.up(request.host) && world_.incarnation(request.host) == request.incarnation;
  installed_(record_, request.host, alive);
  return {Verdict::won, record_, {}};
}

void ArbiterService::answer(const std::shared_ptr<Request>& request, Duration delay, const Answer& answer) {
  if (world_.incarnation(request->host) != request->incarnation) return;  // It died meanwhile.
  world_.at_host(request->host, delay, [this, request, answer] {
    Answer settled = answer;
    const bool ours = settled.current && settled.current->nonce == request->desired.nonce;
    if (settled.verdict == Verdict::lost && ours && !world_.plant(Plant::forget_nonce)) {
      settled.verdict = Verdict::won;
    }
    if (settled.verdict != Verdict::unknown || world_.now() + kRetryPause >= request->give_up) {
      return request->done(settled);
    }
    world_.at_host(request->host, kRetryPause, [this, request] { attempt(request); });
  });
}

void ArbiterService::attempt(const std::shared_ptr<Request>& request) {
  Random& random = world_.random();
  const Duration there = random.between(kWayMin, kWayMax), back = random.between(kWayMin, kWayMax);
  const Duration left = std::max(request->give_up - world_.now(), Duration::zero());
  const Answer unknown{Verdict::unknown, std::nullopt, {}};
  if (away(request->host)) {
    // Refused at once, or silence.
    return answer(request, random.chance(50) ? there : left, unknown);
  }
  const bool late = random.chance(faults_.late_percent);
  if (late || random.chance(faults_.ambiguous_percent)) {
    ++world_.stats().ambiguous;
    world_.note(request->host, "is not answered by the arbiter");
    if (late || random.chance(70)) {
      world_.after(late ? random.between(there, kLateMax) : there, [this, request] {
        if (!away(request->host)) (void)swap(*request);
      });
    }
    return answer(request, random.chance(50) ? there + back : left, unknown);
  }
  world_.after(there, [this, request, back, left, unknown] {
    if (away(request->host)) return answer(request, left, unknown);
    const Answer outcome = swap(*request);
    if (outcome.verdict == Verdict::won && world_.random().chance(faults_.crash_percent)) {
      crash_(request->host);
    }
    // The way back may be gone by then.
    answer(request, back, away(request->host) ? unknown : outcome);
  });
}

}  // namespace remusd::simulate
