// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/gate.h"

#include <cstring>

#include "ckpt/status.h"

namespace remusd::simulate {
namespace {

constexpr uint64_t kSessionShift = 40;
constexpr uint64_t kEpochMask = (uint64_t{1} << kSessionShift) - 1;
constexpr size_t kLimitBytes = 64 * sizeof(Packet), kLimitFrames = 64;

}  // namespace

Gate::Gate(World& world, HostId host, std::function<void(const Departure&)> heard)
    : world_(world), host_(host), heard_(std::move(heard)), queue_(kLimitBytes, kLimitFrames) {}

void Gate::wake() {
  if (awake_) return;
  awake_ = true;
  world_.at_host(host_, world_.random().between(microseconds(5), microseconds(150)), [this] { run(); });
}

void Gate::send(const Packet& packet) {
  if (mode_ == Mode::shut) return;
  socket_.push_back(packet);
  wake();
}

void Gate::hold(uint64_t session) {
  REMUSD_ASSERT(mode_ == Mode::passing, "a session begins while output passes");
  const uint64_t number = (open_ >> kSessionShift) + 1;
  session_ = session;
  released_ = number << kSessionShift;
  open_ = number << kSessionShift | 1;
  if (world_.plant(Plant::reuse_epoch_number)) released_ |= epochs_held_;
  mode_ = Mode::holding;
  wake();
}

void Gate::seal(uint64_t epoch) {
  REMUSD_ASSERT((open_ & kEpochMask) == epoch || world_.plant(Plant::forget_seal),
                "epochs are sealed one after another");
  // Forgotten: what the guest sends from here on still counts to the epoch before.
  open_ = (open_ & ~kEpochMask) | (world_.plant(Plant::forget_seal) ? epoch : epoch + 1);
}

void Gate::release_through(uint64_t epoch) {
  epochs_held_ = std::max(epochs_held_, epoch);
  released_ = (open_ & ~kEpochMask) | epoch;
  wake();
}

void Gate::pass() {
  REMUSD_ASSERT(mode_ != Mode::shut, "a gate that was shut stays shut");
  mode_ = Mode::passing;
  wake();
}

void Gate::shut() {
  mode_ = Mode::shut;
  socket_.clear();
  wake();
}

// As NetBuffer::Pump::advance(): read, then tag; the mode is read after the packets were.
void Gate::run() {
  awake_ = false;
  while (!socket_.empty() && queue_.has_room(sizeof(Packet))) {
    Packet packet = socket_.front();
    socket_.pop_front();
    // Read into a later session than it was sent in: the checkers go by the tag then.
    if (packet.session == 0 && mode_ == Mode::holding) {
      packet.session = session_;
      packet.epoch = open_ & kEpochMask;
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(&packet);
    (void)queue_.push(open_, world_.now(), {bytes, sizeof packet});
  }
  const Mode mode = mode_;
  if (mode == Mode::shut) {
    (void)queue_.discard();
    return;
  }
  queue_.set_passing(mode == Mode::passing);
  queue_.release_through(released_);
  while (const netbuf::EpochQueue::Frame* frame = queue_.front_released()) {
    Departure departure;
    departure.passed = mode == Mode::passing;
    std::memcpy(&departure.packet, frame->bytes.data(), sizeof departure.packet);
    queue_.pop();
    heard_(departure);
  }
  if (!socket_.empty() && queue_.has_room(sizeof(Packet))) wake();
}

}  // namespace remusd::simulate
