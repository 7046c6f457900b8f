// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// QEMU's migration stream, as far as promotion needs it. Pure functions.
//
//   stream   be32 "QEVM" | be32 3 | [0x07 configuration] | section*  | 0x00 | [vmdescription]
//   section  0x01 start or 0x04 full: be32 id | u8 n, name | be32 instance | be32 version | data | footer
//            0x02 part or 0x03 end:   be32 id | data | footer
//   footer   0x7e | be32 id
//
// Sections carry no length, so only the data of "ram" is understood here (be64 page offset | flags ...).
// Under the capability x-ignore-shared they hold the blocks that are not shared: firmware, option ROMs, ACPI
// tables. Start, parts and end stand before every device section, which makes them the head of the stream.
//
// The base is that head: magic, version, "ram" sections. It crosses the wire, so whoever uses it checks it
// again. Source of the format: docs/devel/migration.rst of QEMU 7.2 and recorded streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ckpt/status.h"

namespace remusd::guest::qemu {

inline constexpr size_t kMaxStreamBytes = size_t{64} << 20;  // of a recorded stream, and of a base
inline constexpr size_t kMaxDeviceBytes = size_t{16} << 20;  // of the device state of one epoch
inline constexpr size_t kMaxRamBlocks = 256;

struct RamBlock {
  std::string name;
  uint64_t bytes = 0;
  uint64_t address = 0;  // guest physical
  uint64_t pages = 0;    // records in the stream; 0 for the shared RAM
};

struct BaseContents {
  std::vector<RamBlock> blocks;
  size_t head_bytes = 0;  // up to the end of the last "ram" section
  size_t ram_offset = 0;  // where the "ram" sections begin
};

/// Checks the head of a stream, or a base. `corrupt` says at which byte what was found; `unsupported` when it
/// is well formed but holds what this program does not know (another live section).
Result<BaseContents> inspect(std::span<const std::byte> stream);

/// The base of a recorded `migrate` stream. Refuses one in which the block `ram` has contents: then
/// x-ignore-shared was not on, or the RAM is not shared.
Result<std::vector<std::byte>> extract_base(std::span<const std::byte> stream, const std::string& ram);

/// What `migrate-incoming` is to be fed: the base, then the sections of a state saved by
/// xen-save-devices-state. Both are checked.
Result<std::vector<std::byte>> compose(std::span<const std::byte> base, std::span<const std::byte> device);

}  // namespace remusd::guest::qemu
