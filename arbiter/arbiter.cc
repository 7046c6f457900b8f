// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/arbiter.h"

#include <sys/random.h>

#include <array>
#include <fstream>
#include <thread>

namespace remusd::arbiter {
namespace {

constexpr Duration kRetryPause = std::chrono::milliseconds(10);

bool is_ours(const Answer& answer, const Record& desired) {
  return answer.current.has_value() && answer.current->nonce == desired.nonce;
}

}  // namespace

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::won:
      return "won";
    case Verdict::lost:
      return "lost";
    case Verdict::unknown:
      return "unknown";
  }
  REMUSD_ASSERT(false, "every verdict has a name");
}

std::string make_nonce() {
  std::array<unsigned char, 16> random{};
  const ssize_t got = ::getrandom(random.data(), random.size(), 0);
  REMUSD_ASSERT(got == static_cast<ssize_t>(random.size()), "16 bytes of randomness are never refused");
  std::string hex;
  for (const unsigned char byte : random) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

std::string this_boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

Answer acquire(Arbiter& arbiter, const std::string& vm, uint64_t expected_generation, const Record& desired,
               Time give_up) {
  REMUSD_ASSERT(desired.generation == expected_generation + 1, "a change raises the generation by one");
  REMUSD_ASSERT(!desired.nonce.empty(), "a request is known by its nonce");
  while (true) {
    // Swapping again after an unknown answer is safe: the same nonce at the same generation can be installed
    // once only, and if the first request did commit, this one is refused and shows us our own nonce.
    Answer answer = arbiter.compare_and_swap(vm, expected_generation, desired, give_up);
    if (answer.verdict == Verdict::won) return answer;
    if (answer.verdict == Verdict::lost) {
      if (is_ours(answer, desired)) answer.verdict = Verdict::won;
      return answer;
    }
    if (Clock::now() + kRetryPause >= give_up) return answer;
    std::this_thread::sleep_for(kRetryPause);
  }
}

Result<uint64_t> win_next_generation(Arbiter& arbiter, const std::string& vm, const std::string& node,
                                     const std::string& peer, Time give_up) {
  const auto held_by = [](const Record& record) {
    return Status(Code::unsafe, "node '" + record.owner + "' won generation " +
                                    std::to_string(record.generation) + ": it must not run here");
  };
  auto record = arbiter.read(vm, give_up);
  if (!record.ok()) return record.status().with_context("arbiter (" + arbiter.describe() + ")");
  if (*record && (*record)->owner != node) return held_by(**record);
  Record desired;
  const uint64_t expected = *record ? (*record)->generation : 0;
  desired.generation = expected + 1;
  desired.owner = node;
  desired.boot_id = this_boot_id();
  desired.nonce = make_nonce();
  desired.peer = peer;
  const Answer answer = acquire(arbiter, vm, expected, desired, give_up);
  switch (answer.verdict) {
    case Verdict::won:
      return desired.generation;
    case Verdict::lost:
      if (answer.current) return held_by(*answer.current);
      return Status(Code::unsafe, "another request for the right to run won just now");
    case Verdict::unknown:
      break;
  }
  const std::string why = answer.why.ok() ? "no answer" : answer.why.message();
  return Status(Code::unavailable,
                "the arbiter (" + arbiter.describe() + ") does not say who may run it: " + why);
}

}  // namespace remusd::arbiter
