// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/kept_run.h"

#include <algorithm>
#include <cstring>

#include "ckpt/status.h"
#include "disk/nbd_protocol.h"

namespace remusd::disk {

std::unique_ptr<KeptRun> Observer::kept(size_t, uint64_t, uint64_t, bool) {
  return nullptr;
}

bool KeptRun::whole() const {
  uint64_t at = offset;
  for (const Piece& piece : pieces) {
    if (piece.offset != at) return false;
    at += piece.bytes;
  }
  return at == offset + bytes;
}

void KeptRun::lay_over(std::span<std::byte> out) const {
  REMUSD_ASSERT(out.size() == bytes, "the run is the one that was asked for");
  for (const Piece& piece : pieces) {
    std::byte* to = out.data() + (piece.offset - offset);
    if (piece.kind == ChangeKind::write) {
      std::memcpy(to, data.data() + piece.at, piece.bytes);
    } else {
      std::memset(to, 0, piece.bytes);
    }
  }
}

size_t KeptRun::lay_over_extents(std::span<std::byte> extents, size_t count, size_t most) const {
  std::vector<nbd::Extent> under(count), over;
  std::memcpy(under.data(), extents.data(), count * sizeof(nbd::Extent));
  const auto add = [&](uint64_t run_bytes, uint32_t state) {
    if (run_bytes == 0) return;
    if (!over.empty() && over.back().state == state) {
      over.back().bytes = static_cast<uint32_t>(over.back().bytes + run_bytes);
      return;
    }
    nbd::Extent extent;
    extent.bytes = static_cast<uint32_t>(run_bytes);
    extent.state = state;
    over.push_back(extent);
  };
  uint64_t place = offset;
  auto piece = pieces.begin();
  for (const nbd::Extent& extent : under) {
    const uint64_t end = place + extent.bytes;
    while (place < end) {
      while (piece != pieces.end() && piece->offset + piece->bytes <= place) ++piece;
      const bool inside = piece != pieces.end() && piece->offset <= place;
      uint64_t until = end;
      if (inside) until = std::min(until, piece->offset + piece->bytes);
      if (!inside && piece != pieces.end()) until = std::min(until, piece->offset);
      const uint32_t kept =
          inside && piece->kind == ChangeKind::write ? 0 : nbd::kStateHole | nbd::kStateZero;
      add(until - place, inside ? kept : uint32_t{extent.state});
      place = until;
    }
  }
  over.resize(std::min(over.size(), most));
  std::memcpy(extents.data(), over.data(), over.size() * sizeof(nbd::Extent));
  return over.size();
}

}  // namespace remusd::disk
