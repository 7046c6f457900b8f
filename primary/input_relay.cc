// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/input_relay.h"

#include "ckpt/records.h"

namespace remusd::primary {
namespace {

constexpr size_t kMaxFrames = 1024;

}  // namespace

bool InputRelay::take(size_t card, std::span<const std::byte> frame) {
  ckpt::Bytes body;
  ckpt::encode(ckpt::Input{static_cast<uint16_t>(card), frame}, &body);
  const std::lock_guard lock(mutex_);
  if (bodies_.size() >= kMaxFrames) return false;
  bodies_.push_back(std::move(body));
  return true;
}

void InputRelay::forward(Sender* sender) {
  const std::lock_guard lock(mutex_);
  while (forwarded_ < bodies_.size() && sender->send(ckpt::FrameType::input, 0, bodies_[forwarded_]).ok())
    ++forwarded_;
}

void InputRelay::give_back(netbuf::NetBuffer* net) {
  std::deque<ckpt::Bytes> bodies;
  {
    const std::lock_guard lock(mutex_);
    bodies.swap(bodies_);
    forwarded_ = 0;
  }
  // Without our lock: the gate takes its own, under which it calls take().
  for (const ckpt::Bytes& body : bodies) {
    ckpt::Input input;
    if (ckpt::decode(body, &input).ok()) (void)net->inject(input.card, input.frame);  // it counts drops
  }
}

}  // namespace remusd::primary
