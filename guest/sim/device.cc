// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/sim/device.h"

#include <xxhash.h>

#include <algorithm>
#include <string>

namespace remusd::guest::sim {
namespace {

constexpr std::array<char, 8> kMagic{'S', 'I', 'M', 'D', 'E', 'V', '0', '1'};
constexpr size_t kDigestAt = 8, kDigestedFrom = 16, kNumbersAt = 16, kNvramAt = 88;
constexpr size_t kFramesAt = kNvramAt + kNvramBytes;
constexpr size_t kSlotBytes = sizeof(uint32_t) + sizeof(FrameBytes);
static_assert(kNumbersAt + 9 * sizeof(uint64_t) == kNvramAt);
static_assert(kFramesAt + kTransmitSlots * kSlotBytes <= kDeviceBytes);

uint64_t digest_of(std::span<const std::byte> saved) {
  return XXH3_64bits(saved.data() + kDigestedFrom, saved.size() - kDigestedFrom);
}

Status corrupt(const std::string& why) {
  return {Code::corrupt, "device state of a simulated guest: " + why};
}

}  // namespace

void save_device(const SimDevice& device, uint64_t config, std::vector<std::byte>* out) {
  REMUSD_ASSERT(device.transmit.size() <= kTransmitSlots, "the transmit ring is bounded");
  out->assign(kDeviceBytes, std::byte{0});
  std::memcpy(out->data(), kMagic.data(), kMagic.size());
  const std::array<uint64_t, 9> numbers{config,
                                        device.steps,
                                        device.rng,
                                        device.received,
                                        device.sent,
                                        device.memory_sum,
                                        device.beacon_in_ms,
                                        device.halted ? uint64_t{1} : uint64_t{0},
                                        device.transmit.size()};
  std::memcpy(out->data() + kNumbersAt, numbers.data(), sizeof numbers);
  std::memcpy(out->data() + kNvramAt, device.nvram.data(), kNvramBytes);
  size_t at = kFramesAt;
  for (const SimFrame& frame : device.transmit) {
    std::memcpy(out->data() + at, &frame.card, sizeof frame.card);
    std::memcpy(out->data() + at + sizeof frame.card, frame.bytes.data(), frame.bytes.size());
    at += kSlotBytes;
  }
  const uint64_t digest = digest_of(*out);
  std::memcpy(out->data() + kDigestAt, &digest, sizeof digest);
}

Result<SimDevice> load_device(std::span<const std::byte> saved, uint64_t config, size_t cards) {
  if (saved.size() != kDeviceBytes) {
    return corrupt(std::to_string(saved.size()) + " bytes instead of " + std::to_string(kDeviceBytes));
  }
  if (std::memcmp(saved.data(), kMagic.data(), kMagic.size()) != 0) return corrupt("no device state at all");
  uint64_t digest = 0;
  std::memcpy(&digest, saved.data() + kDigestAt, sizeof digest);
  if (digest != digest_of(saved)) return corrupt("its digest does not match");
  std::array<uint64_t, 9> numbers{};
  std::memcpy(numbers.data(), saved.data() + kNumbersAt, sizeof numbers);
  if (numbers[0] != config) return corrupt("it belongs to a guest of another definition");
  SimDevice device;
  device.steps = numbers[1];
  device.rng = numbers[2];
  device.received = numbers[3];
  device.sent = numbers[4];
  device.memory_sum = numbers[5];
  device.beacon_in_ms = numbers[6];
  if (device.beacon_in_ms == 0 || device.beacon_in_ms > kBeaconMs) return corrupt("impossible beacon timer");
  if (numbers[7] > 1) return corrupt("impossible halt flag");
  device.halted = numbers[7] == 1;
  if (numbers[8] > kTransmitSlots) return corrupt("more frames in transmit than the ring has");
  std::memcpy(device.nvram.data(), saved.data() + kNvramAt, kNvramBytes);
  size_t at = kFramesAt;
  for (uint64_t i = 0; i < numbers[8]; ++i, at += kSlotBytes) {
    SimFrame frame;
    std::memcpy(&frame.card, saved.data() + at, sizeof frame.card);
    if (frame.card >= cards) return corrupt("a frame for a card that does not exist");
    std::memcpy(frame.bytes.data(), saved.data() + at + sizeof frame.card, frame.bytes.size());
    device.transmit.push_back(frame);
  }
  const auto rest = saved.subspan(at);
  if (std::any_of(rest.begin(), rest.end(), [](std::byte byte) { return byte != std::byte{0}; }))
    return corrupt("bytes after its end");
  return device;
}

}  // namespace remusd::guest::sim
