// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The simulated guest: frames from its network, and its device state with the digest put right, since nobody
// guesses one.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "guest/sim/device.h"
#include "guest/sim/protocol.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

namespace sim = guest::sim;

constexpr uint64_t kConfig = 0x1234;
constexpr size_t kCards = 2;
constexpr size_t kDigestAt = 8, kDigestedFrom = 16;  // device.h

void run_frame(View frame) {
  const auto message = sim::parse_frame(frame);
  if (!message) return;
  REMUSD_ASSERT(frame.size() >= sim::kHeaderBytes + 8, "a frame has at least an id");
  const sim::FrameBytes made = sim::to_frame(*message);
  const size_t said = frame.size() >= sim::kHeaderBytes + 24 ? sim::kHeaderBytes + 24 : sim::kHeaderBytes + 8;
  REMUSD_ASSERT(same(View(made).first(said), frame.first(said)), "a message is written as it was read");
}

void run_device(View given, bool right) {
  Bytes saved(given.begin(), given.end());
  saved.resize(sim::kDeviceBytes);
  if (right) {
    const uint64_t digest = XXH3_64bits(saved.data() + kDigestedFrom, saved.size() - kDigestedFrom);
    std::memcpy(saved.data() + kDigestAt, &digest, sizeof digest);
  }
  const auto device = sim::load_device(saved, kConfig, kCards);
  if (!device.ok()) return require_reason(device.status());
  REMUSD_ASSERT(device->transmit.size() <= sim::kTransmitSlots, "the ring is bounded");
  for (const sim::SimFrame& frame : device->transmit) REMUSD_ASSERT(frame.card < kCards, "the card exists");
  Bytes again;
  sim::save_device(*device, kConfig, &again);
  REMUSD_ASSERT(same(again, saved), "a state is saved as it was loaded");
}

void run(View bytes) {
  Input input(bytes);
  const uint8_t mode = input.number() % 3;
  if (mode == 0) return run_frame(input.rest());
  run_device(input.rest(), mode == 1);
}

void seeds(Seeds* out) {
  const sim::FrameBytes frame =
      sim::to_frame({.to = sim::kBroadcast, .from = {2, 0, 0, 0, 0, 1}, .id = 7, .counter = 1, .hash = 2});
  Bytes input{std::byte{0}};
  input.insert(input.end(), frame.begin(), frame.end());
  out->add(input);
  sim::SimDevice device;
  device.steps = 5;
  device.transmit = {{0, frame}, {1, frame}};
  Bytes saved;
  sim::save_device(device, kConfig, &saved);
  for (const int mode : {1, 2}) {
    input = {static_cast<std::byte>(mode)};
    input.insert(input.end(), saved.begin(), saved.begin() + 800);
    out->add(input);
  }
}

REMUSD_FUZZ_TARGET(sim, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
