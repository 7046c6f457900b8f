// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "netbuf/framing.h"

namespace remusd::netbuf {

Framing next_frame(std::span<const std::byte> stream, std::span<const std::byte>* frame) {
  if (stream.size() < kLengthBytes) return Framing::partial;
  uint32_t size = 0;
  for (const std::byte byte : stream.first(kLengthBytes)) size = size << 8 | std::to_integer<uint32_t>(byte);
  if (size > kMaxFrameBytes) return Framing::corrupt;
  if (stream.size() - kLengthBytes < size) return Framing::partial;
  *frame = stream.subspan(kLengthBytes, size);
  return Framing::whole;
}

void put_length(size_t frame_bytes, std::byte* at) {
  for (size_t i = kLengthBytes; i-- > 0; frame_bytes >>= 8)
    at[i] = static_cast<std::byte>(frame_bytes & 0xff);
}

}  // namespace remusd::netbuf
