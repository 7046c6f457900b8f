// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A simulated machine that moves only when it is told to: no thread, no clock, no descriptor but its memory.
// Two machines with the same configuration that are given the same calls do the same, bit for bit; so does
// one that is restored from another's memory, device state and base.
//
// Always: device().memory_sum == the digest of memory(). restore() checks it, so that an image which is a
// mixture of two epochs, or lacks a page, cannot be run.
//
// Not thread-safe. Only the machine may write memory() while it lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "ckpt/pages.h"
#include "ckpt/status.h"
#include "guest/definition.h"
#include "guest/sim/device.h"
#include "guest/sim/memory.h"
#include "guest/sim/protocol.h"

namespace remusd::guest::sim {

inline constexpr uint64_t kMinPages = 256;

struct SimConfig {
  uint64_t seed = 1;
  uint32_t dirty_pages_per_ms = 8;  // a page may be written twice in a millisecond
  uint64_t memory_pages = kMinPages;
  std::vector<MacBytes> cards;

  uint64_t digest() const;
  uint64_t memory_bytes() const { return memory_pages * kPageSize; }
};
/// REQUIRES: the definition has been validated.
SimConfig config_of(const Definition& definition);

/// Of an image: a sum over pages, so that it can be kept up to date page by page. Zero pages count nothing.
uint64_t memory_digest(std::span<const std::byte> memory);

class SimMachine {
 public:
  /// A machine at its first step, in new memory.
  static Result<SimMachine> boot(const SimConfig& config);
  /// Continues another machine. `memory` holds its pages; `device` and `base` are its save() and base().
  /// Refuses with `corrupt` when they do not belong together.
  static Result<SimMachine> restore(const SimConfig& config, SimMemory memory,
                                    std::span<const std::byte> base, std::span<const std::byte> device);

  /// Runs for `virtual_ms`. Frames that the workload sends are appended to output().
  void step(uint64_t virtual_ms);
  /// Hands over a frame that came in; the answer, if any, is appended to output(). False when the transmit
  /// ring is full: nothing was done, offer it again when output() has been taken.
  bool receive(uint32_t card, std::span<const std::byte> frame);
  /// Frames that wait for the network, oldest first. They are part of the device state until they are taken.
  const std::deque<SimFrame>& output() const { return device_.transmit; }
  void pop_output();
  /// The power button: the machine does nothing any more.
  void halt() { device_.halted = true; }

  /// Marks every page that may not be zero as dirty.
  void mark_populated_dirty() { dirty_ = populated_; }
  /// Replaces *dirty by the pages written since the last call.
  void collect_dirty(PageSet* dirty);

  /// Device state as of now; *out keeps its capacity.
  void save(std::vector<std::byte>* out) const { save_device(device_, config_digest_, out); }
  /// What must be loaded back once and is in no checkpoint: the ROM.
  std::vector<std::byte> base() const;

  const SimDevice& device() const { return device_; }
  const SimConfig& config() const { return config_; }
  std::span<const std::byte> memory() const { return memory_.outside(); }
  uint64_t counter() const;  // as it stands in memory
  /// The machine's end.
  Residue leave_memory() { return std::move(memory_).leave(); }

 private:
  SimMachine(const SimConfig& config, SimMemory memory);

  void step_once();
  void write_page(uint64_t page, const std::function<void(std::span<uint64_t>)>& change);
  std::span<uint64_t> words_of(uint64_t page) const;
  void send(uint32_t card, const MacBytes& to, uint64_t id);

  SimConfig config_;
  uint64_t config_digest_;
  SimMemory memory_;
  SimDevice device_;
  std::vector<uint64_t> populated_;  // one bit a page: was written at any time
  std::vector<uint64_t> dirty_;      // written since the last collect_dirty()
};

}  // namespace remusd::guest::sim
