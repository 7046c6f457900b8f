// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "ckpt/status.h"

namespace remusd::disk {

struct FreeBytes {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};
/// Memory for the content of a request; empty: none.
struct Buffer {
  std::unique_ptr<std::byte, FreeBytes> bytes;
  size_t size = 0;

  std::byte* data() const { return bytes.get(); }
};

/// Buffers whose sizes are powers of two, and a bounded store of free ones: memory that is fresh from the
/// kernel costs more to touch than to copy. How much is taken out its user bounds. Not thread-safe.
class BufferPool {
 public:
  static constexpr size_t kSmallest = 4096, kLargest = 32u << 20;

  explicit BufferPool(size_t kept_bytes) : kept_limit_(kept_bytes) {}

  /// What take(bytes) gives.
  static size_t size_for(size_t bytes) { return std::max(kSmallest, std::bit_ceil(bytes)); }

  /// REQUIRES: bytes <= kLargest. The content is what it was.
  Buffer take(size_t bytes) {
    const size_t size = size_for(bytes);
    REMUSD_ASSERT(size <= kLargest, "a request's content is bounded");
    auto& free = free_[index(size)];
    if (free.empty()) {
      Buffer fresh{
          std::unique_ptr<std::byte, FreeBytes>(static_cast<std::byte*>(std::aligned_alloc(kSmallest, size))),
          size};
      REMUSD_ASSERT(fresh.bytes != nullptr, "there is memory for requests");
      return fresh;
    }
    Buffer buffer = std::move(free.back());
    free.pop_back();
    kept_ -= size;
    return buffer;
  }
  void give(Buffer buffer) {
    if (buffer.size == 0 || kept_ + buffer.size > kept_limit_) return;
    kept_ += buffer.size;
    free_[index(buffer.size)].push_back(std::move(buffer));
  }

 private:
  static constexpr size_t kSizes = 14;
  static_assert(kSmallest << (kSizes - 1) == kLargest);
  static size_t index(size_t size) { return static_cast<size_t>(std::countr_zero(size / kSmallest)); }

  std::array<std::vector<Buffer>, kSizes> free_;
  size_t kept_limit_ = 0, kept_ = 0;
};

}  // namespace remusd::disk
