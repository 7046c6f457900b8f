// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/sim/machine.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace remusd::guest::sim {
namespace {

constexpr size_t kWords = kPageSize / sizeof(uint64_t);
constexpr uint64_t kRamMagic = 0x31304d41524d4953;  // "SIMRAM01"
constexpr uint64_t kBootPages = 1024;               // written before the first step
constexpr size_t kRomBytes = 1024;

// Words of page 0, where the workload keeps what it lives on.
enum Head : size_t { kMagicWord, kCounterWord, kRngWord, kRollingWord, kStepsWord };

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
uint64_t next(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

bool is_zero(const std::byte* page) {
  static constexpr std::array<std::byte, kPageSize> kZero{};
  return std::memcmp(page, kZero.data(), kPageSize) == 0;
}

uint64_t page_digest(const std::byte* data, uint64_t page) {
  return XXH3_64bits_withSeed(data, kPageSize, page);
}

void set_bit(std::vector<uint64_t>* bits, uint64_t index) {
  (*bits)[index / 64] |= uint64_t{1} << (index % 64);
}
bool bit(const std::vector<uint64_t>& bits, uint64_t index) {
  return (bits[index / 64] >> (index % 64)) & 1;
}

std::vector<std::byte> base_of(const SimConfig& config) {
  std::vector<std::byte> rom(kRomBytes);
  uint64_t state = config.digest();
  for (size_t at = 0; at < rom.size(); at += sizeof state) {
    const uint64_t word = next(&state);
    std::memcpy(rom.data() + at, &word, sizeof word);
  }
  return rom;
}

MacBytes parse_mac(const std::string& text) {
  REMUSD_ASSERT(text.size() == 17, "the definition has been validated");
  MacBytes mac{};
  for (size_t i = 0; i < mac.size(); ++i) {
    mac[i] = static_cast<uint8_t>(std::strtoul(text.substr(3 * i, 2).c_str(), nullptr, 16));
  }
  return mac;
}

}  // namespace

uint64_t SimConfig::digest() const {
  const std::array<uint64_t, 3> numbers{seed, dirty_pages_per_ms, memory_pages};
  const uint64_t digest = XXH3_64bits(numbers.data(), sizeof numbers);
  return cards.empty() ? digest : XXH3_64bits_withSeed(cards.data(), cards.size() * sizeof cards[0], digest);
}

SimConfig config_of(const Definition& definition) {
  SimConfig config;
  config.seed = definition.sim.seed;
  config.dirty_pages_per_ms = definition.sim.dirty_pages_per_ms;
  config.memory_pages = definition.memory_mib * ((uint64_t{1} << 20) / kPageSize);
  for (const NicDefinition& nic : definition.nics) config.cards.push_back(parse_mac(nic.mac));
  return config;
}

uint64_t memory_digest(std::span<const std::byte> memory) {
  uint64_t sum = 0;
  for (uint64_t page = 0; page < memory.size() / kPageSize; ++page) {
    const std::byte* data = memory.data() + page * kPageSize;
    if (!is_zero(data)) sum += page_digest(data, page);
  }
  return sum;
}

SimMachine::SimMachine(const SimConfig& config, SimMemory memory)
    : config_(config),
      config_digest_(config.digest()),
      memory_(std::move(memory)),
      populated_((config.memory_pages + 63) / 64),
      dirty_(populated_.size()) {
  REMUSD_ASSERT(config.memory_pages >= kMinPages, "a machine has at least 1 MiB");
  REMUSD_ASSERT(memory_.inside().size() == config.memory_bytes(), "the memory is as large as configured");
}

Result<SimMachine> SimMachine::boot(const SimConfig& config) {
  REMUSD_ASSIGN(SimMemory memory, SimMemory::create(config.memory_bytes()));
  SimMachine machine(config, std::move(memory));
  machine.device_.rng = config.seed;
  uint64_t state = ~config.seed;
  machine.write_page(0, [&](std::span<uint64_t> words) {
    words[kMagicWord] = kRamMagic;
    words[kRngWord] = next(&state);
  });
  for (uint64_t page = 1; page < std::min(config.memory_pages, kBootPages); ++page) {
    machine.write_page(page, [&](std::span<uint64_t> words) {
      // Compressible, as most memory is: only every eighth word differs from its neighbours.
      for (size_t i = 0; i < words.size(); ++i) words[i] = i % 8 == 0 ? next(&state) | 1 : page;
    });
  }
  return machine;
}

Result<SimMachine> SimMachine::restore(const SimConfig& config, SimMemory memory,
                                       std::span<const std::byte> base, std::span<const std::byte> device) {
  const std::vector<std::byte> rom = base_of(config);
  if (!std::equal(base.begin(), base.end(), rom.begin(), rom.end())) {
    return Status(Code::corrupt, "base stream of a simulated guest: not the ROM of this definition");
  }
  SimMachine machine(config, std::move(memory));
  REMUSD_ASSIGN(machine.device_, load_device(device, machine.config_digest_, config.cards.size()));
  const uint64_t digest = memory_digest(machine.memory_.inside());
  const uint64_t steps = machine.words_of(0)[kStepsWord];
  if (digest != machine.device_.memory_sum) {
    return Status(Code::corrupt,
                  "memory of a simulated guest: not that of its device state (memory at step " +
                      std::to_string(steps) + ", device at step " + std::to_string(machine.device_.steps) +
                      ")");
  }
  for (uint64_t page = 0; page < config.memory_pages; ++page) {
    if (!is_zero(machine.memory_.inside().data() + page * kPageSize)) set_bit(&machine.populated_, page);
  }
  return machine;
}

std::span<uint64_t> SimMachine::words_of(uint64_t page) const {
  // A mapping is aligned to pages, and nothing else looks at it with another type.
  return {reinterpret_cast<uint64_t*>(memory_.inside().data() + page * kPageSize), kWords};
}

void SimMachine::write_page(uint64_t page, const std::function<void(std::span<uint64_t>)>& change) {
  const std::byte* data = memory_.inside().data() + page * kPageSize;
  if (bit(populated_, page)) device_.memory_sum -= page_digest(data, page);
  change(words_of(page));
  // Every writer leaves a word that is not zero, so that a populated page is never a zero page.
  device_.memory_sum += page_digest(data, page);
  set_bit(&populated_, page);
  set_bit(&dirty_, page);
}

void SimMachine::step(uint64_t virtual_ms) {
  for (uint64_t i = 0; i < virtual_ms && !device_.halted; ++i) step_once();
}

void SimMachine::step_once() {
  const uint64_t step = ++device_.steps;
  const std::span<uint64_t> head = words_of(0);
  // What happens depends on memory and device alike: neither may come from another epoch.
  uint64_t state = head[kRngWord] ^ device_.rng;
  uint64_t rolling = head[kRollingWord];
  const uint64_t hot_pages = std::max<uint64_t>((config_.memory_pages - 1) / 16, 1);
  for (uint32_t i = 0; i < config_.dirty_pages_per_ms; ++i) {
    // Half of the writes go to a sixteenth of the memory, as working sets do.
    const uint64_t choice = next(&state);
    const uint64_t among = (choice & 1) != 0 ? hot_pages : config_.memory_pages - 1;
    const uint64_t page = 1 + (choice >> 1) % among;
    write_page(page, [&](std::span<uint64_t> words) {
      const uint64_t shape = next(&state);
      const size_t first = 1 + shape % (kWords - 1);
      const size_t count = std::min<size_t>(1 + (shape >> 16) % 64, kWords - first);
      rolling = (rolling ^ words[first]) * 0x9e3779b97f4a7c15;
      words[0] = step;
      for (size_t k = first; k < first + count; ++k) words[k] = next(&state);
      rolling += words[first];
    });
  }
  write_page(0, [&](std::span<uint64_t> words) {
    words[kRngWord] = next(&state);
    words[kRollingWord] = rolling;
    words[kStepsWord] = step;
  });
  device_.rng = next(&state);
  device_.nvram[step % kNvramBytes] = static_cast<std::byte>(device_.rng);
  if (config_.cards.empty() || --device_.beacon_in_ms > 0) return;
  if (device_.transmit.size() < kTransmitSlots) {
    send(static_cast<uint32_t>((step / kBeaconMs) % config_.cards.size()), kBroadcast, 0);
    device_.beacon_in_ms = kBeaconMs;
  } else {
    device_.beacon_in_ms = 1;  // Nobody takes the frames: try again at the next step.
  }
}

bool SimMachine::receive(uint32_t card, std::span<const std::byte> frame) {
  REMUSD_ASSERT(card < config_.cards.size(), "the card exists");
  if (device_.halted) return true;
  const auto request = parse_frame(frame);
  if (!request || request->id == 0) return true;
  if (request->to != config_.cards[card] && request->to != kBroadcast) return true;
  if (device_.transmit.size() >= kTransmitSlots) return false;
  ++device_.received;
  send(card, request->from, request->id);
  return true;
}

void SimMachine::send(uint32_t card, const MacBytes& to, uint64_t id) {
  REMUSD_ASSERT(device_.transmit.size() < kTransmitSlots, "there is room in the transmit ring");
  const uint64_t page = id % config_.memory_pages;
  Message message{.to = to, .from = config_.cards[card], .id = id};
  write_page(0, [&](std::span<uint64_t> words) { message.counter = ++words[kCounterWord]; });
  message.hash =
      words_of(0)[kRollingWord] ^ page_digest(memory_.inside().data() + page * kPageSize, message.counter);
  ++device_.sent;
  device_.transmit.push_back({card, to_frame(message)});
}

void SimMachine::pop_output() {
  REMUSD_ASSERT(!device_.transmit.empty(), "only what is there can be taken");
  device_.transmit.pop_front();
}

void SimMachine::collect_dirty(PageSet* dirty) {
  dirty->clear();
  for (size_t word = 0; word < dirty_.size(); ++word) {
    uint64_t bits = std::exchange(dirty_[word], 0);
    while (bits != 0) {
      const auto low = static_cast<uint64_t>(std::countr_zero(bits));
      bits &= bits - 1;
      const uint64_t page = word * 64 + low;
      if (!dirty->empty() && dirty->back().first + dirty->back().count == page) {
        ++dirty->back().count;
      } else {
        dirty->push_back({page, 1});
      }
    }
  }
}

std::vector<std::byte> SimMachine::base() const {
  return base_of(config_);
}

uint64_t SimMachine::counter() const {
  return words_of(0)[kCounterWord];
}

}  // namespace remusd::guest::sim
