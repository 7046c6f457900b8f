// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "ckpt/status.h"

namespace remusd {

/// Owns one mmap()ed range and unmaps it. Movable, not copyable.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { reset(); }

  /// Maps `size` bytes of `fd` shared from offset 0; `writable` adds PROT_WRITE. `what` names it in errors.
  static Result<Mapping> shared(int fd, size_t size, bool writable, const std::string& what) {
    const int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void* data = ::mmap(nullptr, size, protection, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return Status::from_errno("map " + what);
    return Mapping(data, size);
  }
  /// Maps `size` zeroed private bytes; `populate` touches them now rather than at first use.
  static Result<Mapping> anonymous(size_t size, bool populate) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | (populate ? MAP_POPULATE : 0), -1, 0);
    if (data == MAP_FAILED) return Status::from_errno("map " + std::to_string(size) + " bytes of memory");
    return Mapping(data, size);
  }

  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data_), size_}; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t size() const { return size_; }

 private:
  Mapping(void* data, size_t size) : data_(data), size_(size) {}
  void reset() {
    if (data_ != nullptr) ::munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace remusd
