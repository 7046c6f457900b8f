// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace remusd::guest_service {

inline constexpr uint64_t kHashStart = 0xcbf29ce484222325U;

/// FNV-1a, 64 bits, continued from `state`.
inline uint64_t hash(uint64_t state, const void* data, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) state = (state ^ bytes[i]) * 0x100000001b3U;
  return state;
}

}  // namespace remusd::guest_service
