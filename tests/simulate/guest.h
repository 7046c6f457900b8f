// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The smallest guest that can tell whether it was carried over whole: a few pages, a device state and a disk
// that all move with every answer it gives, and chance in each, so that a second run of the same time comes
// out differently. guest/sim/machine.h is the same idea at full size; a seed must not cost that much.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "ckpt/records.h"
#include "tests/simulate/world.h"

namespace remusd::simulate {

inline constexpr size_t kGuestPages = 6;
inline constexpr uint32_t kDiskBlocks = 4;
inline constexpr size_t kMemoryBytes = kGuestPages * kPageSize;

class LocalDisk;

/// What a client hears. Answers of one life are numbered from 1; each carries a hash of all before it.
struct Packet {
  uint64_t life = 0, number = 0, content = 0, before = 0, request = 0;
  // For the checkers, not for the client: when it was said. Session 0: outside any.
  uint64_t session = 0, epoch = 0;
};

using Blocks = std::array<uint64_t, kDiskBlocks>;

class Guest {
 public:
  /// A new life: what it said before, if anything, is forgotten.
  Guest(World& world, HostId host, uint64_t life);
  /// Goes on from a committed image; nullopt when it is not of one piece.
  static std::optional<Guest> restore(World& world, HostId host, std::span<const std::byte> memory,
                                      std::span<const std::byte> device);

  /// What it writes goes to this disk, and what it reads must be what it wrote; before anything else.
  void attach(LocalDisk* disk) { local_ = disk; }

  Packet answer(uint64_t request);
  /// Works without saying anything.
  void work();

  std::span<const std::byte> memory() const { return memory_; }
  /// Pages written since the last call, ascending.
  std::vector<uint64_t> take_dirty();
  void mark_all_dirty() { dirty_ = (1u << kGuestPages) - 1; }
  /// Blocks of the disk written since the last call, whether or not that worked.
  std::vector<uint32_t> take_written();
  ckpt::Bytes save() const;
  uint64_t life() const { return device_.life; }
  uint64_t answers() const { return device_.number; }
  /// What it believes to be on its disk.
  const Blocks& disk() const { return device_.disk; }

 private:
  struct Device {
    uint64_t life = 0, number = 0, content = 0, steps = 0;
    uint64_t undefined = 0;  // a bit for each block whose last write failed: it was told so
    Blocks disk{};
  };

  Guest(World& world, HostId host) : world_(&world), host_(host), memory_(kMemoryBytes) {}
  void touch(size_t page, uint64_t value);
  void write_disk();
  void read_disk();

  World* world_;
  HostId host_;
  Device device_;
  std::vector<std::byte> memory_;
  uint32_t dirty_ = 0, written_ = 0;
  LocalDisk* local_ = nullptr;
};

/// Of an image: what the checkers compare.
uint64_t image_digest(std::span<const std::byte> memory, std::span<const std::byte> device);

}  // namespace remusd::simulate
