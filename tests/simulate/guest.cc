// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/guest.h"

#include <xxhash.h>

#include <cstring>

#include "ckpt/status.h"
#include "tests/simulate/local_disk.h"

namespace remusd::simulate {
namespace {

constexpr size_t kWords = kPageSize / sizeof(uint64_t);
constexpr uint32_t kFlushPercent = 25, kWritePercent = 40, kReadPercent = 20;

}  // namespace

Guest::Guest(World& world, HostId host, uint64_t life) : Guest(world, host) {
  device_.life = life;
  for (size_t page = 0; page < kGuestPages; ++page) touch(page, life);
}

std::optional<Guest> Guest::restore(World& world, HostId host, std::span<const std::byte> memory,
                                    std::span<const std::byte> device) {
  Guest guest(world, host);
  if (device.size() < sizeof guest.device_ || memory.size() != kMemoryBytes) return std::nullopt;
  std::memcpy(&guest.device_, device.data(), sizeof guest.device_);
  guest.memory_.assign(memory.begin(), memory.end());
  return guest;
}

// A page of few words: the codec's time is not what is tested here. The first word is the number of the step
// that wrote it, the second a chain over all that was written to it.
void Guest::touch(size_t page, uint64_t value) {
  std::array<uint64_t, 3> words;
  std::byte* at = memory_.data() + page * kPageSize;
  std::memcpy(words.data(), at, sizeof words);
  words[0] = ++device_.steps;
  words[1] = XXH3_64bits(words.data(), sizeof words);
  words[2] = value;
  std::memcpy(at, words.data(), sizeof words);
  const size_t anywhere = words[1] % kWords;
  if (anywhere >= words.size()) std::memcpy(at + anywhere * sizeof(uint64_t), &words[0], sizeof words[0]);
  dirty_ |= 1u << page;
}

void Guest::write_disk() {
  Random& random = world_->random();
  const auto block = static_cast<uint32_t>(random.below(kDiskBlocks));
  const uint64_t bit = uint64_t{1} << block;
  device_.disk[block] = random.next();
  written_ |= 1u << block;
  const Status status = local_->write(block, device_.disk[block]);
  const bool told = !status.ok() && !world_->plant(Plant::hide_write_error);
  device_.undefined = told ? device_.undefined | bit : device_.undefined & ~bit;
  if (!status.ok()) ++world_->stats().guest_disk_errors;
  if (random.chance(kFlushPercent)) (void)local_->flush();
}

void Guest::read_disk() {
  const auto block = static_cast<uint32_t>(world_->random().below(kDiskBlocks));
  if ((device_.undefined >> block & 1) != 0 || local_->off()) return;
  const uint64_t value = local_->read(block);
  if (value == device_.disk[block]) return;
  world_->violation("disk: the guest on host " + std::string(name_of(host_)) + " reads of block " +
                    std::to_string(block) + " what it did not write");
}

void Guest::work() {
  Random& random = world_->random();
  touch(random.below(kGuestPages), random.next());
  if (random.chance(kWritePercent)) write_disk();
  if (random.chance(kReadPercent)) read_disk();
}

Packet Guest::answer(uint64_t request) {
  Packet packet{.life = device_.life, .request = request};
  packet.before = device_.content;
  const uint64_t chain[3] = {device_.content, request, world_->random().next()};
  device_.content = packet.content = XXH3_64bits(chain, sizeof chain);
  packet.number = ++device_.number;
  touch(0, packet.content);
  work();
  return packet;
}

std::vector<uint64_t> Guest::take_dirty() {
  std::vector<uint64_t> pages;
  for (size_t page = 0; page < kGuestPages; ++page) {
    if ((dirty_ >> page & 1) != 0) pages.push_back(page);
  }
  dirty_ = 0;
  return pages;
}

std::vector<uint32_t> Guest::take_written() {
  std::vector<uint32_t> blocks;
  for (uint32_t block = 0; block < kDiskBlocks; ++block) {
    if ((written_ >> block & 1) != 0) blocks.push_back(block);
  }
  written_ = 0;
  return blocks;
}

ckpt::Bytes Guest::save() const {
  ckpt::Bytes out(sizeof device_);
  std::memcpy(out.data(), &device_, sizeof device_);
  return out;
}

uint64_t image_digest(std::span<const std::byte> memory, std::span<const std::byte> device) {
  return XXH3_64bits_withSeed(device.data(), device.size(), XXH3_64bits(memory.data(), memory.size()));
}

}  // namespace remusd::simulate
