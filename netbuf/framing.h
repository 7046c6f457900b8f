// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// QEMU's stream netdev: be32 length, then the frame, back to back. Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace remusd::netbuf {

inline constexpr size_t kLengthBytes = 4;
/// Largest frame that QEMU's stream netdev sends or takes.
inline constexpr size_t kMaxFrameBytes = 4096 + 65536;

enum class Framing {
  whole,    // a frame, perhaps an empty one
  partial,  // more has to come
  corrupt,  // a length beyond kMaxFrameBytes: a stream that cannot be trusted any further
};

/// What `stream` begins with; *frame is the frame's place in it when it is whole, else untouched.
Framing next_frame(std::span<const std::byte> stream, std::span<const std::byte>* frame);
/// Writes the length of a frame to `at`, which has room for kLengthBytes.
void put_length(size_t frame_bytes, std::byte* at);

}  // namespace remusd::netbuf
