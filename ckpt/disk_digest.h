// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a backup's disks hold, without sending it: the primary asks (DISK_ASK), the backup tells (DISK_TELL).
// FORMAT.md has the diagrams. Bounds: an answer has at most kMaxBodyBytes, whatever was asked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ckpt/records.h"
#include "ckpt/seed.h"

namespace remusd::ckpt {

/// A digest stands for so many bytes of a disk, from a multiple of it; the last one may stand for less.
inline constexpr uint64_t kDiskBlockBytes = 4096;
inline constexpr uint64_t kMaxDiskBlocksTold = 4096;  // in one answer
inline constexpr uint64_t kMaxMapBytesTold = 1u << 20;

/// map: the sync point of the asked host's disks, and where they may differ from it. blocks: what a run of a
/// disk holds.
enum class DiskAskKind : uint16_t { map = 0, blocks = 1 };

struct DiskAsk {
  DiskAskKind kind = DiskAskKind::map;
  uint16_t disk = 0;    // map: 0
  uint64_t offset = 0;  // blocks: of the disk, a multiple of kDiskBlockBytes. map: of the bitmap
  uint64_t bytes = 0;   // blocks: at least 1. map: 0
  DigestKey key{};      // of the digests
};

struct DiskTell {
  DiskAskKind kind = DiskAskKind::map;
  uint16_t disk = 0;
  bool zeros = false;   // blocks: all of the run is; there are no digests
  uint64_t offset = 0;  // as it was asked
  uint64_t bytes = 0;   // blocks: of the run, at least 1, at most what was asked. map: of `data`
  uint64_t epoch = 0;   // blocks: the newest that is in the disk
  // map only.
  SessionId point{};  // all zero: none is known
  uint64_t region_bytes = 0;
  // Into the record. blocks: a PageDigest for each block. map: bits, the lowest of each byte first.
  View data;
  PageDigest digest(size_t index) const { return digest_at(data, index); }
};

/// Of a run that begins at a block.
constexpr uint64_t disk_blocks(uint64_t bytes) {
  return (bytes + kDiskBlockBytes - 1) / kDiskBlockBytes;
}

void encode(const DiskAsk& record, Bytes* out);
void encode(const DiskTell& record, Bytes* out);
Status decode(View body, DiskAsk* record);
Status decode(View body, DiskTell* record);

}  // namespace remusd::ckpt
