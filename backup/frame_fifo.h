// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Frame bodies kept as received, first in, first out, in chunks that are used again: what is being staged is
// at the back, what is being applied at the front. The caller bounds it; memory_bytes() tells what it costs.
// Not thread-safe.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

namespace remusd::backup {

class FrameFifo {
 public:
  /// Frames do not cross chunks: a chunk holds at least three of the largest frames.
  static constexpr size_t kChunkBytes = 8u << 20;
  static constexpr size_t kSpareChunks = 4;  // kept for the next epoch rather than given back

  explicit FrameFifo(size_t chunk_bytes = kChunkBytes) : chunk_bytes_(chunk_bytes) {}

  /// REQUIRES: body.size() <= chunk_bytes.
  void push(std::span<const std::byte> body);
  std::span<const std::byte> front() const;
  void pop_front();
  void pop_back();

  size_t frames() const { return frames_.size(); }
  size_t bytes() const { return bytes_; }
  size_t memory_bytes() const { return (chunks_.size() + spare_.size()) * chunk_bytes_; }

 private:
  using Chunk = std::unique_ptr<std::byte[]>;
  struct Frame {
    size_t chunk;  // counted from the first chunk ever
    size_t offset;
    size_t bytes;
  };
  void drop_unused();

  size_t chunk_bytes_;
  std::deque<Chunk> chunks_;
  size_t first_chunk_ = 0;  // number of chunks_.front()
  size_t used_ = 0;         // of chunks_.back()
  std::vector<Chunk> spare_;
  std::deque<Frame> frames_;
  size_t bytes_ = 0;
};

}  // namespace remusd::backup
