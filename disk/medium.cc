// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/medium.h"

namespace remusd::disk {

Status write_run(Medium& disk, const ckpt::DiskRun& run) {
  switch (run.encoding) {
    case ckpt::DiskEncoding::zero:
      return disk.zero(run.offset, run.bytes);
    case ckpt::DiskEncoding::hole:
      return disk.punch(run.offset, run.bytes);
    case ckpt::DiskEncoding::raw:
      return disk.write(run.offset, run.data);
    case ckpt::DiskEncoding::lz4:
      break;
  }
  REMUSD_ASSERT(false, "the run is decoded");
  return {};
}

Status flush_all(const Media& media) {
  for (const auto& medium : media) REMUSD_TRY(medium->flush());
  return {};
}

}  // namespace remusd::disk
