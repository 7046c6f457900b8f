// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "ckpt/mapping.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"
#include "guest/residue.h"

namespace remusd::guest::sim {

/// A simulated machine's RAM: a memfd, as with QEMU, mapped twice. The machine works through its own mapping
/// and the engine through another, just as if the machine were another process.
class SimMemory {
 public:
  /// All zero. `bytes` is a multiple of kPageSize.
  static Result<SimMemory> create(uint64_t bytes);

  std::span<std::byte> inside() const { return inside_.bytes(); }
  std::span<std::byte> outside() const { return outside_.bytes(); }
  /// Hands the file over; the memory must not be used any more.
  Residue leave() && { return {std::move(fd_), std::move(outside_)}; }

 private:
  SimMemory(ScopedFd fd, Mapping inside, Mapping outside);

  ScopedFd fd_;
  Mapping inside_;
  Mapping outside_;
};

}  // namespace remusd::guest::sim
