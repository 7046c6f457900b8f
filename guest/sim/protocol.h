// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a simulated guest says on its network card. Ethernet frames of 60 bytes, type 0x88b5 (IEEE 802 local
// experimental), numbers little-endian after the Ethernet header:
//
//   request  u64 id (not 0)                             to the card's MAC or broadcast
//   reply    u64 id, u64 counter, u64 hash              to the sender of the request
//   beacon   u64 0,  u64 counter, u64 hash              broadcast, by itself, every kBeaconMs
//
// `counter` is kept in guest memory and raised by one for every reply and beacon, so whoever has seen n must
// never see n again; `hash` depends on guest memory at large, so that a guest restored from a mixture of
// epochs answers something else.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace remusd::guest::sim {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie in memory");

using MacBytes = std::array<uint8_t, 6>;
using FrameBytes = std::array<std::byte, 60>;  // the shortest Ethernet frame, without its check sequence

inline constexpr uint16_t kEtherType = 0x88b5;
inline constexpr size_t kHeaderBytes = 14;
inline constexpr uint64_t kBeaconMs = 16;
inline constexpr MacBytes kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

struct Message {
  MacBytes to{};
  MacBytes from{};
  uint64_t id = 0;
  uint64_t counter = 0;  // 0 in a request
  uint64_t hash = 0;
};

inline FrameBytes to_frame(const Message& message) {
  FrameBytes frame{};
  std::memcpy(frame.data(), message.to.data(), 6);
  std::memcpy(frame.data() + 6, message.from.data(), 6);
  frame[12] = std::byte{kEtherType >> 8};
  frame[13] = std::byte{kEtherType & 0xff};
  std::memcpy(frame.data() + kHeaderBytes, &message.id, 8);
  std::memcpy(frame.data() + kHeaderBytes + 8, &message.counter, 8);
  std::memcpy(frame.data() + kHeaderBytes + 16, &message.hash, 8);
  return frame;
}

/// nullopt for a frame that is not of this protocol. A request may end after its id.
inline std::optional<Message> parse_frame(std::span<const std::byte> frame) {
  if (frame.size() < kHeaderBytes + 8) return std::nullopt;
  if (frame[12] != std::byte{kEtherType >> 8} || frame[13] != std::byte{kEtherType & 0xff})
    return std::nullopt;
  Message message;
  std::memcpy(message.to.data(), frame.data(), 6);
  std::memcpy(message.from.data(), frame.data() + 6, 6);
  std::memcpy(&message.id, frame.data() + kHeaderBytes, 8);
  if (frame.size() >= kHeaderBytes + 24) {
    std::memcpy(&message.counter, frame.data() + kHeaderBytes + 8, 8);
    std::memcpy(&message.hash, frame.data() + kHeaderBytes + 16, 8);
  }
  return message;
}

}  // namespace remusd::guest::sim
