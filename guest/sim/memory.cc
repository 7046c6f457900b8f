// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/sim/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "ckpt/pages.h"

namespace remusd::guest::sim {

SimMemory::SimMemory(ScopedFd fd, Mapping inside, Mapping outside)
    : fd_(std::move(fd)), inside_(std::move(inside)), outside_(std::move(outside)) {}

Result<SimMemory> SimMemory::create(uint64_t bytes) {
  REMUSD_ASSERT(bytes > 0 && bytes % kPageSize == 0, "memory is whole pages");
  ScopedFd fd(::memfd_create("remusd-sim", MFD_CLOEXEC));
  if (!fd) return Status::from_errno("create memory of a simulated guest");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return Status::from_errno("size memory of a simulated guest to " + std::to_string(bytes) + " bytes");
  }
  REMUSD_ASSIGN(Mapping inside, Mapping::shared(fd.get(), bytes, true, "memory of a simulated guest"));
  REMUSD_ASSIGN(Mapping outside, Mapping::shared(fd.get(), bytes, true, "memory of a simulated guest"));
  return SimMemory(std::move(fd), std::move(inside), std::move(outside));
}

}  // namespace remusd::guest::sim
