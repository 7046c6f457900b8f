// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/crew.h"

#include "ckpt/status.h"
#include "ckpt/thread.h"

namespace remusd {
namespace {

constexpr int kPartBits = 12;
constexpr uint64_t kPartMask = (uint64_t{1} << kPartBits) - 1;
static_assert(Crew::kMaxParts == kPartMask + 1);

uint64_t number_of(uint64_t ticket) {
  return ticket >> (2 * kPartBits);
}
uint64_t parts_of(uint64_t ticket) {
  return ticket >> kPartBits & kPartMask;
}
uint64_t taken_of(uint64_t ticket) {
  return ticket & kPartMask;
}

}  // namespace

Crew::Crew(size_t helpers, const std::string& name) {
  for (size_t i = 0; i < helpers; ++i) {
    helpers_.emplace_back([this, name] {
      begin_thread(name.c_str(), Urgency::urgent);
      help();
    });
  }
}

Crew::~Crew() {
  quit_ = true;
  ticket_ = (number_of(ticket_) + 1) << (2 * kPartBits);  // A job without parts.
  ticket_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void Crew::run(size_t parts, const std::function<void(size_t part)>& job) {
  REMUSD_ASSERT(parts < kMaxParts, "a job has a bounded number of parts");
  if (parts == 0) return;
  job_ = &job;
  done_ = 0;
  uint64_t ticket = (number_of(ticket_) + 1) << (2 * kPartBits) | parts << kPartBits;
  ticket_ = ticket;
  if (parts > 1) ticket_.notify_all();
  while (take_part(&ticket)) {
  }
  for (uint32_t done = done_; done != parts; done = done_) done_.wait(done);
}

void Crew::help() {
  uint64_t ticket = ticket_;
  while (!quit_) {
    if (!take_part(&ticket)) {
      ticket_.wait(ticket);
      ticket = ticket_;
    }
  }
}

/// Takes and does a part, if the job that *ticket shows has one left; renews *ticket.
bool Crew::take_part(uint64_t* ticket) {
  while (taken_of(*ticket) < parts_of(*ticket)) {
    if (!ticket_.compare_exchange_weak(*ticket, *ticket + 1)) continue;
    // The job cannot end before this part has.
    (*job_.load())(taken_of(*ticket));
    ++done_;
    done_.notify_one();
    *ticket = ticket_;
    return true;
  }
  return false;
}

}  // namespace remusd
