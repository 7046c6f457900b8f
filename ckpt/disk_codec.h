// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// DISK bodies: runs of bytes that an epoch changes on the guest's disks, to bytes and back. A run is encoded
// piece by piece: zeros cost a table entry only, and what lz4 does not make an eighth smaller goes raw.
// FORMAT.md has the diagram.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "ckpt/records.h"

namespace remusd::ckpt {

/// What one entry leaves in its run. zero: zeros, the run keeps its room. hole: zeros, and its room may be
/// given back.
enum class DiskEncoding : uint8_t { zero = 0, raw = 1, lz4 = 2, hole = 3 };

struct DiskEntry {
  uint64_t offset = 0;
  uint32_t bytes = 0;          // of the run, once decoded
  uint32_t payload_bytes = 0;  // zero, hole: 0; raw: as bytes; lz4: less
  uint16_t disk = 0;
  uint8_t encoding = 0;  // DiskEncoding
  uint8_t reserved[5] = {0, 0, 0, 0, 0};
};
static_assert(sizeof(DiskEntry) == 24);

/// One run as it is encoded and decoded. data holds the bytes of raw, the block of lz4, nothing for the
/// others.
struct DiskRun {
  uint16_t disk = 0;
  uint64_t offset = 0;
  uint32_t bytes = 0;
  DiskEncoding encoding = DiskEncoding::raw;
  View data;
};

/// Collects runs into one body.
class DiskBody {
 public:
  /// Takes a run (zero, raw or hole; the pieces of raw may become zero or lz4) at the end. False: the body is
  /// full, the run was not taken. Its data is encoded here and not kept.
  /// REQUIRES: 1 <= bytes <= kMaxDiskRunBytes.
  bool add(const DiskRun& run);
  bool empty() const { return entries_.empty(); }
  /// Appends the body and begins the next one. REQUIRES: !empty().
  void take(Bytes* out);
  /// Decoded bytes in it: what its runs change.
  uint64_t raw_bytes() const { return raw_bytes_; }

 private:
  void add_entry(const DiskRun& run, DiskEncoding encoding, View payload);
  void add_piece(const DiskRun& piece);
  View compressed(View data);

  std::vector<DiskEntry> entries_;
  size_t of_run_ = 0;  // entries before those of the run that is being added
  Bytes payloads_;
  Bytes scratch_;
  uint64_t raw_bytes_ = 0;
};

/// Checks a body whole, but for what lz4 blocks decode to: bounds, sizes, each run within its disk.
/// `disk_bytes`: the sizes of the guest's disks. *raw_bytes is what its runs change.
Status check_disk(View body, std::span<const uint64_t> disk_bytes, uint64_t* raw_bytes);
/// Decodes every lz4 block of a body that check_disk() accepted into scratch memory only: apply_disk() cannot
/// fail to decode afterwards.
Status verify_disk(View body);
/// Calls `apply` for each run of a checked body, in order, with lz4 already decoded (raw, zero or hole; data
/// is valid for the call). Stops at its first failure and returns it.
Status apply_disk(View body, const std::function<Status(const DiskRun& run)>& apply);
/// Whether the runs of a body that check_disk() accepted are of held disks (a bit each); `corrupt` when some
/// are and some are not.
Result<bool> is_held(View body, uint32_t held);

}  // namespace remusd::ckpt
