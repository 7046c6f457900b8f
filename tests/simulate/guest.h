// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The smallest guest that can tell whether it was carried over whole: a few pages, a device state and a disk
// that all move with every answer it gives, and chance in each, so that a second run of the same time comes
// out differently. guest/sim/machine.h is the same idea at full size; a seed must not cost that much.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "ckpt/records.h"
#include "tests/simulate/world.h"

namespace remusd::simulate {

inline constexpr size_t kGuestPages = 6;
inline constexpr size_t kDiskBlocks = 4;
inline constexpr size_t kMemoryBytes = kGuestPages * kPageSize;

/// What a client hears. Answers of one life are numbered from 1; each carries a hash of all before it.
struct Packet {
  uint64_t life = 0, number = 0, content = 0, before = 0, request = 0;
  // For the checkers, not for the client: when it was said. Session 0: outside any.
  uint64_t session = 0, epoch = 0;
};

/// A guest's write to its disk, or (block == kBarrier) a flush that it waited for.
struct DiskWrite {
  static constexpr uint32_t kBarrier = 0xffffffff;
  uint64_t serial = 0;
  uint64_t value = 0;
  uint32_t block = 0;
  uint32_t reserved = 0;
};
using Blocks = std::array<uint64_t, kDiskBlocks>;

class Guest {
 public:
  /// A new life: what it said before, if anything, is forgotten.
  Guest(World& world, HostId host, uint64_t life);
  /// Goes on from a committed image; nullopt when it is not of one piece.
  static std::optional<Guest> restore(World& world, HostId host, std::span<const std::byte> memory,
                                      std::span<const std::byte> device);

  Packet answer(uint64_t request);
  /// Works without saying anything.
  void work();

  std::span<const std::byte> memory() const { return memory_; }
  /// Pages written since the last call, ascending.
  std::vector<uint64_t> take_dirty();
  void mark_all_dirty() { dirty_ = (1u << kGuestPages) - 1; }
  /// Device state and the writes to the disk since the last call; `whole_disk`: all blocks instead.
  ckpt::Bytes save(bool whole_disk);
  uint64_t life() const { return device_.life; }
  uint64_t answers() const { return device_.number; }
  const Blocks& disk() const { return device_.disk; }

 private:
  struct Device {
    uint64_t life = 0, number = 0, content = 0, steps = 0, serial = 0;
    Blocks disk{};
  };

  Guest(World& world, HostId host) : world_(&world), host_(host), memory_(kMemoryBytes) {}
  void touch(size_t page, uint64_t value);
  void write_disk();

  World* world_;
  HostId host_;
  Device device_;
  std::vector<std::byte> memory_;
  uint32_t dirty_ = 0;
  std::vector<DiskWrite> writes_;
};

/// The disk's part of a saved device state.
std::vector<DiskWrite> disk_writes_of(std::span<const std::byte> device);
/// Of an image: what the checkers compare.
uint64_t image_digest(std::span<const std::byte> memory, std::span<const std::byte> device);

/// A host's disk with its volatile cache. It outlives the host's crashes.
class Disk {
 public:
  void write(const DiskWrite& write);
  void barrier();
  void clear();
  /// Power is lost: of what was written since the last barrier any part may be there, in any order.
  void crash(Random& random);
  const Blocks& blocks() const { return blocks_; }
  const std::vector<uint64_t>& durable() const { return durable_; }

 private:
  Blocks blocks_{};
  std::vector<uint64_t> durable_;  // serials
  std::vector<uint64_t> cached_;
};

}  // namespace remusd::simulate
