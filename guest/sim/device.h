// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a simulated machine has besides its memory, and the 4096 bytes that it is saved as:
//
//   0    u8[8]  magic "SIMDEV01"
//   8    u64    digest: XXH3 of bytes 16 to 4095
//   16   u64    config: SimConfig::digest()
//   24   u64    steps, then rng, received, sent, memory_sum, beacon_in_ms, halted, count of frames in
//   transmit 88   u8[512] nvram 600  frames in transmit, each u32 card, u8[60] bytes; the rest is zero
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "ckpt/status.h"
#include "guest/sim/protocol.h"

namespace remusd::guest::sim {

inline constexpr size_t kDeviceBytes = 4096;
inline constexpr size_t kTransmitSlots = 32;
inline constexpr size_t kNvramBytes = 512;

struct SimFrame {
  uint32_t card = 0;
  FrameBytes bytes{};
  bool operator==(const SimFrame&) const = default;
};

struct SimDevice {
  uint64_t steps = 0;  // milliseconds of virtual time
  uint64_t rng = 0;
  uint64_t received = 0;
  uint64_t sent = 0;
  uint64_t memory_sum = 0;  // memory_digest() of the memory that belongs to this state
  uint64_t beacon_in_ms = kBeaconMs;
  bool halted = false;
  std::array<std::byte, kNvramBytes> nvram{};
  std::deque<SimFrame> transmit;  // at most kTransmitSlots; not yet taken by the network

  bool operator==(const SimDevice&) const = default;
};

/// Replaces *out, which keeps its capacity.
void save_device(const SimDevice& device, uint64_t config, std::vector<std::byte>* out);
/// Refuses with `corrupt` what save_device() cannot have written for this configuration.
Result<SimDevice> load_device(std::span<const std::byte> saved, uint64_t config, size_t cards);

}  // namespace remusd::guest::sim
