// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/guest.h"

#include <xxhash.h>

#include <cstring>

#include "ckpt/status.h"

namespace remusd::simulate {
namespace {

constexpr size_t kWords = kPageSize / sizeof(uint64_t);
constexpr uint32_t kBarrierPercent = 25, kDiskPercent = 40;

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
  const uint64_t value = random.next();
  device_.disk[block] = value;
  writes_.push_back({++device_.serial, value, block});
  if (random.chance(kBarrierPercent)) writes_.push_back({++device_.serial, 0, DiskWrite::kBarrier});
}

void Guest::work() {
  Random& random = world_->random();
  touch(random.below(kGuestPages), random.next());
  if (random.chance(kDiskPercent)) write_disk();
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

ckpt::Bytes Guest::save(bool whole_disk) {
  if (whole_disk) {
    writes_.clear();
    for (uint32_t block = 0; block < kDiskBlocks; ++block) {
      writes_.push_back({++device_.serial, device_.disk[block], block});
    }
    writes_.push_back({++device_.serial, 0, DiskWrite::kBarrier});
  }
  ckpt::Bytes out(sizeof device_ + writes_.size() * sizeof(DiskWrite));
  std::memcpy(out.data(), &device_, sizeof device_);
  if (!writes_.empty()) {
    std::memcpy(out.data() + sizeof device_, writes_.data(), writes_.size() * sizeof(DiskWrite));
  }
  writes_.clear();
  return out;
}

std::vector<DiskWrite> disk_writes_of(std::span<const std::byte> device) {
  constexpr size_t kHead = 5 * sizeof(uint64_t) + sizeof(Blocks);
  if (device.size() < kHead) return {};
  std::vector<DiskWrite> writes((device.size() - kHead) / sizeof(DiskWrite));
  if (!writes.empty()) std::memcpy(writes.data(), device.data() + kHead, writes.size() * sizeof(DiskWrite));
  return writes;
}

uint64_t image_digest(std::span<const std::byte> memory, std::span<const std::byte> device) {
  return XXH3_64bits_withSeed(device.data(), device.size(), XXH3_64bits(memory.data(), memory.size()));
}

void Disk::write(const DiskWrite& write) {
  blocks_[write.block % kDiskBlocks] = write.value;
  cached_.push_back(write.serial);
}

void Disk::barrier() {
  durable_.insert(durable_.end(), cached_.begin(), cached_.end());
  cached_.clear();
}

void Disk::clear() {
  *this = {};
}

void Disk::crash(Random& random) {
  for (const uint64_t serial : cached_) {
    if (random.chance(50)) durable_.push_back(serial);
  }
  cached_.clear();
}

}  // namespace remusd::simulate
