// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// GuestHost: an operator doubts that both hosts' disks are the same.
#include "control/guest_host.h"
#include "control/log.h"

namespace remusd::control {
namespace {

constexpr std::chrono::seconds kVerifyPatience{10};

}  // namespace

/// ok, or why there is nothing to compare.
Reply GuestHost::check_resync(const std::string& what) const {
  if (guest_ == nullptr) return not_here("resync");
  if (disks_ == nullptr) return Status(Code::invalid, what + ": the guest has no disks");
  if (protection() == nullptr) return Reply::not_protected(what + ": it is not protected");
  if (const std::string state = status().state; state != "protected") {
    return Status(Code::unsafe, what + ": refused in state " + state + "; wait until it is protected");
  }
  return {};
}

/// The comparison goes on in the background; status tells of it.
Reply GuestHost::verify_disks(bool dry_run) {
  settle();
  if (Reply fit = check_resync("resync --verify " + name_); !fit.status.ok()) return fit;
  if (dry_run) return Reply::would("compare the disks of " + name_ + " with their replica");
  const auto live = protection();
  const uint64_t before = live->snapshot().disk_verifies;
  live->verify_disks();
  const Time deadline = Clock::now() + kVerifyPatience;
  std::unique_lock lock(mutex_);
  // Its snapshot is made anew at each heartbeat at the latest.
  while (live->snapshot().disk_verifies == before && Clock::now() < deadline)
    changed_.wait_for(lock, std::chrono::milliseconds(context_.config.heartbeat_ms));
  lock.unlock();
  if (live->snapshot().disk_verifies == before)
    return Status(Code::timed_out,
                  "resync --verify " + name_ + ": not begun yet; see 'remusd status " + name_ + "'");
  return to_json(status());
}

/// A session that looks at all of the disks. Protected again by the time it is over; unprotected until then.
Reply GuestHost::resync(bool dry_run) {
  settle();
  const std::string what = "resync " + name_;
  if (Reply fit = check_resync(what); !fit.status.ok()) return fit;
  std::string peer;
  primary::PaceOptions pace;
  {
    const std::lock_guard lock(mutex_);
    peer = rest_.peer;
    pace = rest_.pace;
  }
  if (dry_run)
    return Reply::would("end the protection of " + name_ + ", and protect it on node '" + peer +
                        "' again after a comparison of all that its disks hold");
  if (Reply ended = unprotect("an operator has the disks compared anew", false); !ended.status.ok())
    return ended;
  disks_->forget_sync_point();
  log(LogLevel::info, {name_}, "the disks are compared anew");
  // The peer may still be about to let go of the replica that it had.
  for (const Time deadline = Clock::now() + kVerifyPatience;;) {
    Reply begun = protect(peer, pace, false);
    if (!begun.status.ok()) return begun;
    bool refused = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, deadline,
                          [this] { return last_protection_.state != primary::State::connecting; });
      refused = is_final(last_protection_.state);
    }
    if (!refused || Clock::now() >= deadline) return begun;
    (void)wait_protection_end(kVerifyPatience);
    settle();
  }
}

}  // namespace remusd::control
