// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/epoch_log.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "ckpt/status.h"

namespace remusd::disk {
namespace {

ckpt::DiskEncoding encoding_of(ChangeKind kind) {
  switch (kind) {
    case ChangeKind::write:
      return ckpt::DiskEncoding::raw;
    case ChangeKind::zero:
      return ckpt::DiskEncoding::zero;
    case ChangeKind::punch:
      break;
  }
  return ckpt::DiskEncoding::hole;
}

}  // namespace

uint64_t EpochLog::cost(const Change& change) const {
  const bool block = change.kind == ChangeKind::write && !fits(change.bytes);
  return 2 * kRunCost + (block ? std::max<uint64_t>(kBlockBytes, change.bytes) : 0);
}

void EpochLog::add(const Change& change, std::span<const std::byte> data) {
  const bool writes = change.kind == ChangeKind::write;
  REMUSD_ASSERT(change.disk < kMaxDisks && change.bytes > 0, "the server has checked the request");
  REMUSD_ASSERT(data.size() == (writes ? change.bytes : 0), "a write brings its bytes, nothing else does");
  written_bytes_ += change.bytes;
  Runs& runs = disks_[change.disk];
  const uint64_t end = change.offset + change.bytes;
  if (const auto same = runs.find(change.offset);
      writes && same != runs.end() && same->second.bytes == change.bytes && same->second.data != nullptr) {
    std::memcpy(same->second.data, data.data(), data.size());  // The same block again: the usual case.
    return;
  }
  cut(&runs, change.offset);
  cut(&runs, end);
  const auto first = runs.lower_bound(change.offset), last = runs.lower_bound(end);
  runs_ -= static_cast<uint64_t>(std::distance(first, last));
  runs.erase(first, last);
  runs.emplace(change.offset, Run{change.bytes, change.kind, writes ? keep(data) : nullptr});
  ++runs_;
}

/// No run goes across `offset` any more.
void EpochLog::cut(Runs* runs, uint64_t offset) {
  auto after = runs->lower_bound(offset);
  if (after == runs->begin()) return;
  auto& [begin, run] = *std::prev(after);
  if (begin + run.bytes <= offset) return;
  const uint64_t kept = offset - begin;
  runs->emplace_hint(after, offset,
                     Run{run.bytes - kept, run.kind, run.data != nullptr ? run.data + kept : nullptr});
  run.bytes = kept;
  ++runs_;
}

std::byte* EpochLog::keep(std::span<const std::byte> data) {
  if (!fits(data.size())) {
    // A large write has a block of its own, which is then full.
    const size_t room = std::max(kBlockBytes, data.size());
    blocks_.push_back(std::make_unique_for_overwrite<std::byte[]>(room));
    block_used_ = 0;
    held_bytes_ += room;
  }
  std::byte* at = blocks_.back().get() + block_used_;
  std::memcpy(at, data.data(), data.size());
  block_used_ = std::min(kBlockBytes, block_used_ + data.size());
  return at;
}

bool EpochLog::take(ckpt::DiskBody* body, ckpt::Bytes* out, uint64_t* raw_bytes) {
  bool full = false;
  for (; taking_ < kMaxDisks && !full; taking_ += full ? 0 : 1) {
    Runs& runs = disks_[taking_];
    while (!runs.empty()) {
      const auto at = runs.begin();
      auto& [offset, run] = *at;
      ckpt::DiskRun part;
      part.disk = static_cast<uint16_t>(taking_);
      part.offset = offset;
      part.bytes = static_cast<uint32_t>(std::min<uint64_t>(run.bytes, ckpt::kMaxDiskRunBytes));
      part.encoding = encoding_of(run.kind);
      if (run.data != nullptr) part.data = {run.data, part.bytes};
      if (!body->add(part)) {
        full = true;
        break;
      }
      if (part.bytes < run.bytes) {
        cut(&runs, offset + part.bytes);
      }
      runs.erase(at);
      --runs_;
    }
  }
  if (body->empty()) return false;
  *raw_bytes = body->raw_bytes();
  body->take(out);
  return true;
}

}  // namespace remusd::disk
