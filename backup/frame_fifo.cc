// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/frame_fifo.h"

#include <cstring>
#include <utility>

#include "ckpt/status.h"

namespace remusd::backup {

void FrameFifo::push(std::span<const std::byte> body) {
  REMUSD_ASSERT(body.size() <= chunk_bytes_, "a frame is smaller than a chunk");
  if (chunks_.empty() || chunk_bytes_ - used_ < body.size()) {
    if (spare_.empty()) {
      // Not zeroed: pages are touched only as frames fill them.
      chunks_.push_back(Chunk(new std::byte[chunk_bytes_]));
    } else {
      chunks_.push_back(std::move(spare_.back()));
      spare_.pop_back();
    }
    used_ = 0;
  }
  if (!body.empty()) std::memcpy(chunks_.back().get() + used_, body.data(), body.size());
  frames_.push_back({first_chunk_ + chunks_.size() - 1, used_, body.size()});
  used_ += body.size();
  bytes_ += body.size();
}

std::span<const std::byte> FrameFifo::front() const {
  REMUSD_ASSERT(!frames_.empty(), "no frame is kept");
  const Frame& frame = frames_.front();
  return {chunks_[frame.chunk - first_chunk_].get() + frame.offset, frame.bytes};
}

void FrameFifo::pop_front() {
  REMUSD_ASSERT(!frames_.empty(), "no frame is kept");
  bytes_ -= frames_.front().bytes;
  frames_.pop_front();
  drop_unused();
}

void FrameFifo::pop_back() {
  REMUSD_ASSERT(!frames_.empty(), "no frame is kept");
  bytes_ -= frames_.back().bytes;
  // The space behind it is used again when the chunk is; only what aborts an epoch comes here.
  frames_.pop_back();
  drop_unused();
}

void FrameFifo::drop_unused() {
  if (frames_.empty()) {
    // Start over in the first chunk, so that a steady flow stays in memory that is warm.
    used_ = 0;
    while (chunks_.size() > 1) {
      if (spare_.size() < kSpareChunks) spare_.push_back(std::move(chunks_.back()));
      chunks_.pop_back();
    }
    return;
  }
  while (first_chunk_ < frames_.front().chunk) {
    if (spare_.size() < kSpareChunks) spare_.push_back(std::move(chunks_.front()));
    chunks_.pop_front();
    ++first_chunk_;
  }
}

}  // namespace remusd::backup
