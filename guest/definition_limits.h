// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Bounds of a definition: checked when it is validated and when it is read from a peer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace remusd::guest {

inline constexpr size_t kMaxDefinitionBytes = size_t{1} << 20;  // of JSON
inline constexpr size_t kMaxNameBytes = 32;
inline constexpr size_t kMaxInterfaceBytes = 15;    // IFNAMSIZ - 1
inline constexpr size_t kMaxSocketPathBytes = 107;  // sun_path without its end
inline constexpr size_t kMaxPathBytes = 1024;
inline constexpr size_t kMaxAppendBytes = 2047;  // COMMAND_LINE_SIZE of x86 Linux - 1
inline constexpr size_t kMaxCpuBytes = 1024;
inline constexpr size_t kMaxArgumentBytes = 4096;
inline constexpr size_t kMaxExtraArguments = 64;
inline constexpr size_t kMaxCommandArguments = 512;
inline constexpr size_t kMaxNics = 8;
inline constexpr size_t kMaxDisks = 16;
inline constexpr size_t kMaxDiskNameBytes = 16;  // fits virtio-blk's serial number (20)
inline constexpr uint32_t kMaxVcpus = 64;
inline constexpr uint64_t kMinQemuMemoryMib = 16;
inline constexpr uint64_t kMaxMemoryMib = 65536;
inline constexpr uint32_t kMaxSimDirtyPagesPerMs = 4096;

}  // namespace remusd::guest
