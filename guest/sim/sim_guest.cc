// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/sim/sim_guest.h"

#include <poll.h>

#include <algorithm>

#include "ckpt/thread.h"

namespace remusd::guest::sim {
namespace {

constexpr Duration kStep = std::chrono::milliseconds(1);
// Virtual time that is behind by more is given up: a guest that was paused long does not rush.
constexpr Duration kMaxBehind = std::chrono::milliseconds(20);

}  // namespace

class SimGuest::Lock {
 public:
  explicit Lock(const SimGuest& guest) : guest_(guest) {
    ++guest_.callers_;
    guest_.mutex_.lock();
  }
  ~Lock() {
    --guest_.callers_;
    guest_.mutex_.unlock();
    guest_.left_.notify_all();
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  const SimGuest& guest_;
};

SimGuest::SimGuest(Facts facts, std::vector<NicEndpoint> nics, SimMachine machine,
                   std::vector<std::unique_ptr<Card>> cards)
    : facts_(std::move(facts)),
      nics_(std::move(nics)),
      machine_(std::move(machine)),
      cards_(std::move(cards)),
      next_step_(Clock::now() + kStep) {
  REMUSD_ASSERT(cards_.size() == machine_.config().cards.size(), "every card has its socket");
  saved_.reserve(kDeviceBytes);
  thread_ = std::thread([this] {
    begin_thread("sim");
    run();
  });
}

SimGuest::~SimGuest() {
  static_cast<void>(destroy());
}

void SimGuest::run() {
  std::vector<pollfd> wanted;
  for (;;) {
    Duration wait{};
    {
      std::unique_lock lock(mutex_);
      left_.wait(lock, [this] { return callers_ == 0 && (destroyed_ || !paused_); });
      if (destroyed_) return;
      work();
      wanted.clear();
      for (const auto& card : cards_) wanted.push_back(card->wanted());
      wait = std::clamp(next_step_ - Clock::now(), Duration::zero(), kStep);
    }
    const timespec timeout{0, std::chrono::nanoseconds(wait).count()};
    ::ppoll(wanted.data(), wanted.size(), &timeout, nullptr);
  }
}

void SimGuest::work() {
  exchange_frames();
  const Time now = Clock::now();
  if (now < next_step_) return;
  machine_.step(1);
  next_step_ = std::max(next_step_ + kStep, now - kMaxBehind);
  exchange_frames();
}

void SimGuest::exchange_frames() {
  for (uint32_t i = 0; i < cards_.size(); ++i) {
    cards_[i]->service([&](std::span<const std::byte> frame) { return machine_.receive(i, frame); });
  }
  while (!machine_.output().empty()) {
    const SimFrame& frame = machine_.output().front();
    if (!cards_[frame.card]->send(frame.bytes)) break;
    machine_.pop_output();
  }
}

Status SimGuest::gone() const {
  return {Code::unavailable, "simulated guest: it has been destroyed"};
}

Status SimGuest::start_tracking() {
  const Lock lock(*this);
  if (destroyed_) return gone();
  tracking_ = true;
  assumed_.clear();
  machine_.mark_populated_dirty();
  return {};
}

Status SimGuest::stop_tracking() {
  const Lock lock(*this);
  tracking_ = false;
  return {};
}

std::string SimGuest::tracker_name() const {
  const Lock lock(*this);
  return tracking_ ? "sim" : "none";
}

Status SimGuest::collect_dirty(PageSet* dirty) {
  const Lock lock(*this);
  dirty->clear();
  if (destroyed_) return gone();
  REMUSD_ASSERT(tracking_, "start_tracking() comes before collect_dirty()");
  machine_.collect_dirty(dirty);
  merge_pages(assumed_, dirty);
  return {};
}

void SimGuest::assume_written(const PageSet& pages) {
  const Lock lock(*this);
  assumed_ = pages;
}

Status SimGuest::pause() {
  const Lock lock(*this);
  if (destroyed_) return gone();
  paused_ = true;
  machine_.save(&saved_);
  return {};
}

Result<std::span<const std::byte>> SimGuest::save() {
  const Lock lock(*this);
  if (destroyed_) return gone();
  REMUSD_ASSERT(!saved_.empty(), "device state is that of a pause");
  return std::span<const std::byte>(saved_);
}

Status SimGuest::resume() {
  const Lock lock(*this);
  if (destroyed_) return gone();
  paused_ = false;
  return {};
}

Result<std::vector<std::byte>> SimGuest::base_stream() {
  const Lock lock(*this);
  if (destroyed_) return gone();
  return machine_.base();
}

Status SimGuest::destroy() {
  const std::lock_guard join(join_mutex_);
  {
    const Lock lock(*this);
    destroyed_ = true;
  }
  if (thread_.joinable()) thread_.join();
  const Lock lock(*this);
  cards_.clear();
  return {};
}

Residue SimGuest::take_memory() {
  const Lock lock(*this);
  REMUSD_ASSERT(destroyed_, "only what nobody uses any more is taken");
  return machine_.leave_memory();
}

Status SimGuest::power_button() {
  const Lock lock(*this);
  if (destroyed_) return gone();
  if (machine_.device().halted) return {};
  machine_.halt();
  events_.push_back({EventKind::powered_off, "the power button was pressed"});
  return {};
}

std::vector<Event> SimGuest::take_events() {
  const Lock lock(*this);
  return std::exchange(events_, {});
}

}  // namespace remusd::guest::sim
