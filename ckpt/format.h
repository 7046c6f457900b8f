// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The wire format's constants, shared by encoder and decoder. FORMAT.md is the specification; where the two
// disagree, FORMAT.md is right. All integers are little-endian.
//
// A connection carries frames in both directions. A frame is a FrameHeader and body_bytes bytes of body.
#pragma once

#include <cstddef>
#include <cstdint>

namespace remusd::ckpt {

inline constexpr uint32_t kMagic = 0x314d4552;  // "REM1"
inline constexpr uint16_t kVersion = 1;         // the only one so far
inline constexpr uint16_t kOptionalBit = 0x8000;

/// Bounds that a decoder enforces before it allocates.
inline constexpr uint32_t kMaxBodyBytes = 2u << 20;
inline constexpr uint32_t kMaxPagesPerFrame = 256;
inline constexpr uint64_t kMaxBlobBytes = 64u << 20;     // device state, base stream
inline constexpr uint32_t kMaxBlobPartBytes = 1u << 20;  // of one part, decoded
inline constexpr uint32_t kMaxFilesNeeded = 64;
inline constexpr uint64_t kMaxFileBytes = 512u << 20;  // boot files
inline constexpr uint32_t kMaxStringBytes = 4096;
inline constexpr uint32_t kMaxInputBytes = 4096 + 65536;  // an Ethernet frame with offloads
inline constexpr uint32_t kMaxTextBytes = 1u << 20;       // DEFINITION and FACTS JSON
inline constexpr uint32_t kMaxSeedPages = 4096;           // of one SEED or KEEP frame
inline constexpr size_t kDigestKeyBytes = 192;
inline constexpr uint32_t kMaxDiskRunBytes = 1u << 20;  // of one run in a DISK frame, decoded
inline constexpr uint32_t kMaxDiskRunsPerFrame = 1024;
inline constexpr uint32_t kMaxDisks = 16;

/// Bit 15 set: optional, a receiver that does not know the type skips the frame. Clear: mandatory, a receiver
/// that does not know it must end the session.
enum class FrameType : uint16_t {
  hello = 1,       // both ways, first frame each way
  refuse = 2,      // B->P: session refused, with reason; nothing follows
  definition = 3,  // P->B: guest definition, JSON
  need_files = 4,  // B->P: boot files that the backup lacks, by digest
  file = 5,        // P->B: part of a boot file
  facts = 6,       // P->B: static facts, JSON
  ready = 7,       // B->P: standby waits, facts agree; limits of the backup
  pages = 8,       // P->B
  device = 9,      // P->B: part of the device state of the epoch
  base = 10,       // P->B: part of the base stream (epoch 1, or again when it changes)
  commit = 11,     // P->B: the epoch is complete; counts and digest
  ack = 12,        // B->P: the epoch is staged whole and checked: the backup will not forget it
  goodbye = 13,    // both ways: orderly end, with reason
  order = 14,      // P->B: operator's order for the backup to take over; B->P: asks for a switchover
  disk = 16,       // P->B: runs of bytes that the epoch changes on the guest's disks
  settled = 17,    // P->B: held disks: what was acknowledged is on the shared storage
  // 18..31 are kept for disks, 32..47 for encryption and identity.
  seed = 48,                     // B->P: what the standby's memory begins with, as digests of its pages
  keep = 49,                     // P->B: pages of it that are right (epoch 1)
  heartbeat = 1 | kOptionalBit,  // both ways
  progress = 2 | kOptionalBit,   // B->P: bytes applied during first sync
  input = 4 | kOptionalBit,      // P->B: a frame that came for the guest after it stood for a switchover
  disk_ask = 5 | kOptionalBit,   // P->B: what do your disks hold?
  disk_tell = 6 | kOptionalBit,  // B->P: this
};

/// True for the types above. The reader refuses any other that is mandatory.
constexpr bool is_known(uint16_t type) {
  const uint16_t number = type & static_cast<uint16_t>(~kOptionalBit);
  if ((type & kOptionalBit) != 0) return number >= 1 && number <= 6;
  return (number >= 1 && number <= 14) || number == 16 || number == 17 || number == 48 || number == 49;
}

/// Feature bits of HELLO.
inline constexpr uint64_t kFeatureDelta = 1u << 0;     // delta and delta_lz4 below, of pages and device state
inline constexpr uint64_t kFeatureSeed = 1u << 1;      // SEED and KEEP
inline constexpr uint64_t kFeatureDisk = 1u << 2;      // DISK; required by a primary whose guest has disks
inline constexpr uint64_t kFeatureHold = 1u << 3;      // SETTLED; required when a disk is held
inline constexpr uint64_t kFeatureDiskTell = 1u << 4;  // DISK_ASK and DISK_TELL

/// How one page is encoded in a PAGES frame, or a part of a blob. 16 and above only under kFeatureDelta.
enum class PageEncoding : uint8_t { zero = 0, raw = 1, lz4 = 2, delta = 16, delta_lz4 = 17 };

struct FrameHeader {
  uint32_t magic = kMagic;
  uint16_t type = 0;        // FrameType
  uint16_t flags = 0;       // must be 0 in version 1
  uint32_t body_bytes = 0;  // <= kMaxBodyBytes
  uint32_t sequence = 0;    // number of this frame in its direction, from 0, wrapping
  uint64_t generation = 0;  // of the sender; a frame of a lower one than the session's is refused
  uint64_t epoch = 0;       // the epoch it belongs to; 0 outside epochs
  uint64_t checksum = 0;    // XXH3-64 over the header with this field 0, then the body
};
static_assert(sizeof(FrameHeader) == 40);
static_assert(offsetof(FrameHeader, body_bytes) == 8);
static_assert(offsetof(FrameHeader, generation) == 16);
static_assert(offsetof(FrameHeader, checksum) == 32);

/// One entry of the table at the start of a PAGES body; the payloads follow in the same order.
struct PageEntry {
  uint64_t page = 0;
  uint32_t payload_bytes = 0;  // 0 for zero, 4096 for raw, 1..4095 for the others
  uint8_t encoding = 0;        // PageEncoding
  uint8_t reserved[3] = {0, 0, 0};
};
static_assert(sizeof(PageEntry) == 16);

}  // namespace remusd::ckpt
