// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/overlay.h"

#include <algorithm>
#include <iterator>

#include "ckpt/status.h"

namespace remusd::disk {

/// No run goes across `offset` any more.
void Overlay::cut(Runs* runs, uint64_t offset) {
  const auto after = runs->lower_bound(offset);
  if (after == runs->begin()) return;
  auto& [begin, run] = *std::prev(after);
  if (begin + run.bytes <= offset) return;
  const uint64_t kept = offset - begin;
  Run rest = run;
  rest.bytes -= kept;
  if (rest.data != nullptr) rest.data += kept;
  run.bytes = kept;
  runs->emplace_hint(after, offset, rest);
  ++runs_;
}

void Overlay::add(const Change& change, const std::byte* data, uint64_t log) {
  REMUSD_ASSERT(change.disk < kMaxDisks && change.bytes > 0, "the server has checked the request");
  Runs& runs = disks_[change.disk];
  const uint64_t end = change.offset + change.bytes;
  const Run run{change.bytes, change.kind, data, log};
  if (const auto same = runs.find(change.offset); same != runs.end() && same->second.bytes == change.bytes) {
    same->second = run;
    return;
  }
  cut(&runs, change.offset);
  cut(&runs, end);
  const auto first = runs.lower_bound(change.offset), last = runs.lower_bound(end);
  runs_ -= static_cast<uint64_t>(std::distance(first, last));
  runs.emplace_hint(runs.erase(first, last), change.offset, run);
  ++runs_;
}

void Overlay::take_out(size_t disk, uint64_t offset, uint64_t bytes, uint64_t log) {
  Runs& runs = disks_[disk];
  const uint64_t end = offset + bytes;
  cut(&runs, offset);
  cut(&runs, end);
  for (auto at = runs.lower_bound(offset); at != runs.end() && at->first < end;) {
    if (at->second.log > log) {
      ++at;
      continue;
    }
    at = runs.erase(at);
    --runs_;
  }
}

std::unique_ptr<KeptRun> Overlay::look(size_t disk, uint64_t offset, uint64_t bytes, bool content) const {
  const Runs& runs = disks_[disk];
  const uint64_t end = offset + bytes;
  auto at = runs.upper_bound(offset);
  if (at != runs.begin() && std::prev(at)->first + std::prev(at)->second.bytes > offset) --at;
  if (at == runs.end() || at->first >= end) return nullptr;
  auto kept = std::make_unique<KeptRun>();
  kept->offset = offset;
  kept->bytes = bytes;
  for (; at != runs.end() && at->first < end; ++at) {
    const auto& [begin, run] = *at;
    const uint64_t from = std::max(begin, offset), until = std::min(begin + run.bytes, end);
    KeptRun::Piece piece{from, until - from, run.kind, kept->data.size()};
    if (content && run.data != nullptr) {
      const std::byte* data = run.data + (from - begin);
      kept->data.insert(kept->data.end(), data, data + piece.bytes);
    }
    kept->pieces.push_back(piece);
  }
  return kept;
}

}  // namespace remusd::disk
