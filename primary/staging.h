// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Where copies wait between the pause and the link: a fixed pool of chunks (256 pages each) and of epoch
// slots, and the queue that hands them from the epoch thread to the ship thread. All memory is mapped and
// touched in make().
//
// At the bound acquire_chunk() waits: a pause or an interval is stretched, nothing grows and nothing is
// dropped. Chunks are reused newest first, so that a small epoch stays in the processor's cache. One mutex
// guards the lists; it is held for a few instructions only, and an epoch that fits into the chunk that its
// thread already holds does not take it while the guest is paused.
//
// Threads: acquire_*, put, wait_drained: epoch thread. take, recycle: ship thread. stop, used_bytes: any.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/epoch_sample.h"
#include "ckpt/format.h"
#include "ckpt/mapping.h"
#include "ckpt/pages.h"
#include "ckpt/seed.h"
#include "primary/core.h"

namespace remusd::primary {

inline constexpr uint32_t kChunkPages = ckpt::kMaxPagesPerFrame;
inline constexpr size_t kChunkDataBytes = kChunkPages * kPageSize;
inline constexpr size_t kMinChunks = 2;

/// Copies of up to 256 pages of one epoch, ascending. Or, when it has runs, pages that the backup has: then
/// the numbers are so many pairs of first page and count, and nothing was copied.
struct Chunk {
  uint64_t epoch = 0;
  uint32_t pages = 0;
  uint32_t runs = 0;
  ckpt::PageDigest digest;      // with runs: KEEP's
  std::span<uint64_t> numbers;  // kChunkPages
  std::span<std::byte> data;    // kChunkDataBytes
};

/// What an epoch has besides pages. The ship thread keeps it until the epoch is acknowledged.
struct EpochSlot {
  uint64_t epoch = 0;
  Time began;                     // start of the pause
  std::vector<std::byte> device;  // keeps its capacity when it is reused
  std::vector<std::byte> base;    // empty but in epoch 1 and after a reboot
  EpochSample sample;
  Time committed;          // ship thread: COMMIT was queued
  uint64_t wire_mark = 0;  // ship thread: bytes queued on the link up to and with COMMIT
  Time first_queued;
  bool wired = false;
};

struct Item {
  enum class Kind {
    chunk,
    sealed,   // slot: the epoch is whole, all its chunks came before
    holding,  // output is held from here on
    stopped,  // the epoch thread has ended; nothing follows
  };
  Kind kind;
  Chunk* chunk = nullptr;
  EpochSlot* slot = nullptr;
};

class Staging {
 public:
  /// `wake` is called after put(), on the epoch thread, without a lock held.
  static Result<std::unique_ptr<Staging>> make(size_t bytes, std::function<void()> wake);

  /// Waits for a free one; null once stopped. *waited is set (never cleared) when there was none at once.
  Chunk* acquire_chunk(bool* waited);
  EpochSlot* acquire_slot(bool* waited);
  void put(const Item& item, bool wake = true);
  /// Waits until at most `chunks` chunks are in use; false once stopped.
  bool wait_drained(size_t chunks);

  std::optional<Item> take();
  void recycle(Chunk* chunk);
  void recycle(EpochSlot* slot);

  /// From here on acquire_* return null and wait_drained false: the session is over.
  void stop();

  size_t used_bytes() const;
  size_t limit_bytes() const { return chunks_.size() * kChunkDataBytes; }

 private:
  Staging(Mapping memory, size_t chunks, std::function<void()> wake);

  Mapping memory_;
  std::function<void()> wake_;
  std::vector<Chunk> chunks_;
  std::array<EpochSlot, kMaxInFlight> slots_;

  mutable std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<Chunk*> free_chunks_;  // last in, first out
  std::vector<EpochSlot*> free_slots_;
  std::vector<Item> queue_;  // ring of fixed size
  size_t head_ = 0, queued_ = 0;
  bool stopped_ = false;
};

}  // namespace remusd::primary
