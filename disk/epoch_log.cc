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

const std::byte* EpochLog::add(const Change& change, std::span<const std::byte> data) {
  const bool writes = change.kind == ChangeKind::write;
  REMUSD_ASSERT(change.disk < kMaxDisks && change.bytes > 0, "the server has checked the request");
  REMUSD_ASSERT(data.size() == (writes ? change.bytes : 0), "a write brings its bytes, nothing else does");
  written_bytes_ += change.bytes;
  Runs& runs = disks_[change.disk];
  const uint64_t end = change.offset + change.bytes;
  if (const auto same = runs.find(change.offset);
      writes && same != runs.end() && same->second.bytes == change.bytes && same->second.data != nullptr) {
    std::memcpy(same->second.data, data.data(), data.size());  // The same block again: the usual case.
    return same->second.data;
  }
  cut(&runs, change.offset);
  cut(&runs, end);
  const auto first = runs.lower_bound(change.offset), last = runs.lower_bound(end);
  runs_ -= static_cast<uint64_t>(std::distance(first, last));
  runs.erase(first, last);
  std::byte* const kept = writes ? keep(data) : nullptr;
  runs.emplace(change.offset, Run{change.bytes, change.kind, kept});
  ++runs_;
  return kept;
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

bool EpochLog::touches(uint32_t disks) const {
  for (size_t disk = 0; disk < kMaxDisks; ++disk)
    if ((disks >> disk & 1U) != 0 && !disks_[disk].empty()) return true;
  return false;
}

bool EpochLog::take(ckpt::DiskBody* body, ckpt::Bytes* out, uint64_t* raw_bytes, uint32_t apart) {
  uint32_t kind = 0;
  for (bool full = false; taking_ < kMaxDisks && !full; taking_ += full ? 0 : 1) {
    const Runs& runs = disks_[taking_];
    auto at = runs.upper_bound(taken_to_);
    if (at != runs.begin() && std::prev(at)->first + std::prev(at)->second.bytes > taken_to_) --at;
    if (!body->empty() && at != runs.end() && (apart >> taking_ & 1U) != kind) break;
    kind = apart >> taking_ & 1U;
    while (at != runs.end()) {
      const auto& [begin, run] = *at;
      const uint64_t offset = std::max(begin, taken_to_), left = begin + run.bytes - offset;
      ckpt::DiskRun part;
      part.disk = static_cast<uint16_t>(taking_);
      part.offset = offset;
      part.bytes = static_cast<uint32_t>(std::min<uint64_t>(left, ckpt::kMaxDiskRunBytes));
      part.encoding = encoding_of(run.kind);
      if (run.data != nullptr) part.data = {run.data + (offset - begin), part.bytes};
      full = !body->add(part);
      if (full) break;
      taken_to_ = offset + part.bytes;
      if (part.bytes == left) ++at;
    }
    if (!full) taken_to_ = 0;
  }
  if (body->empty()) return false;
  *raw_bytes = body->raw_bytes();
  body->take(out);
  return true;
}

}  // namespace remusd::disk
