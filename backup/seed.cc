// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/seed.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace remusd::backup {
namespace {

// Of a slice: some five milliseconds, most of it for the kernel to hand out the standby's memory.
constexpr size_t kSlicePages = 1024;
static_assert(kSlicePages <= ckpt::kMaxSeedPages);
constexpr uint64_t kPagesLookedAt = 4 * kSlicePages;  // zeros are quickly seen

bool is_zero(const std::byte* page) {
  static constexpr std::byte kZero[kPageSize] = {};
  return std::memcmp(page, kZero, kPageSize) == 0;
}

Status bad_keep(const std::string& what) {
  return {Code::corrupt, "KEEP record: " + what};
}

}  // namespace

void SeededPages::told(uint64_t page) {
  waiting_[page / 64] |= uint64_t{1} << (page % 64);
  ++count_;
}

bool SeededPages::take(uint64_t page) {
  if (page / 64 >= waiting_.size()) return false;
  uint64_t& word = waiting_[page / 64];
  const uint64_t bit = uint64_t{1} << (page % 64);
  if ((word & bit) == 0) return false;
  word &= ~bit;
  --count_;
  return true;
}

void SeededPages::sent(ckpt::View pages_body) {
  if (count_ == 0) return;
  uint32_t pages = 0;
  std::memcpy(&pages, pages_body.data(), sizeof pages);
  for (uint32_t i = 0; i < pages; ++i) {
    ckpt::PageEntry entry;
    std::memcpy(&entry, pages_body.data() + 8 + i * sizeof entry, sizeof entry);
    (void)take(entry.page);
  }
}

Status SeededPages::keep(ckpt::View body, std::span<const std::byte> memory) {
  ckpt::Keep record;
  REMUSD_TRY(ckpt::decode(body, &record));
  std::vector<ckpt::PageDigest> digests;
  for (const PageRange& run : record.runs) {
    for (uint64_t page = run.first; page < run.first + run.count; ++page) {
      if (!take(page)) return bad_keep("page " + std::to_string(page) + " was not told, or is settled");
      digests.push_back(ckpt::digest_of(key_, memory.subspan(page * kPageSize, kPageSize)));
    }
  }
  if (ckpt::digest_of(key_, std::as_bytes(std::span(digests))) != record.digest) {
    return bad_keep("the pages from " + std::to_string(record.runs.front().first) +
                    " on are not here what they are on the primary");
  }
  return {};
}

Seeder::Seeder(std::span<std::byte> memory, guest::Residue residue)
    : memory_(memory),
      residue_(std::move(residue)),
      key_(ckpt::make_digest_key()),
      pages_(memory.size() / kPageSize, key_) {
  if (residue_.memory().size() != memory_.size() || !residue_.populated(&populated_).ok()) populated_.clear();
}

bool Seeder::copy_next(uint64_t* budget, uint64_t* page) {
  for (; range_ < populated_.size(); ++range_) {
    PageRange& range = populated_[range_];
    while (range.count > 0) {
      if (*budget == 0) return false;
      --*budget;
      *page = range.first++;
      --range.count;
      const std::byte* from = residue_.memory().data() + *page * kPageSize;
      if (is_zero(from)) continue;
      std::memcpy(memory_.data() + *page * kPageSize, from, kPageSize);
      return true;
    }
  }
  return false;
}

void Seeder::next(ckpt::Bytes* body) {
  REMUSD_ASSERT(!done_, "the last frame says that it is the last");
  std::vector<ckpt::PageDigest> digests;
  ckpt::Seed record;
  record.key = key_;
  uint64_t budget = kPagesLookedAt, page = 0;
  while (digests.size() < kSlicePages && copy_next(&budget, &page)) {
    if (!record.runs.empty() && record.runs.back().first + record.runs.back().count == page) {
      ++record.runs.back().count;
    } else {
      record.runs.push_back({page, 1});
    }
    // Of the standby's own memory: whatever else may have been written there would be told as it is.
    digests.push_back(ckpt::digest_of(key_, memory_.subspan(page * kPageSize, kPageSize)));
    pages_.told(page);
  }
  while (range_ < populated_.size() && populated_[range_].count == 0) ++range_;
  done_ = record.last = range_ == populated_.size();
  // Two images of the guest at a time would be twice its memory.
  const uint64_t through = done_ ? memory_.size() / kPageSize : populated_[range_].first;
  if (through > released_) residue_.release({released_, through - released_});
  released_ = through;
  if (done_) residue_ = {};
  if (digests.empty() && !done_) return;
  record.digests = std::as_bytes(std::span(digests));
  ckpt::encode(record, body);
}

void Seeder::finish() {
  uint64_t budget = UINT64_MAX, page = 0;
  while (copy_next(&budget, &page)) continue;
  residue_ = {};
  done_ = true;
}

}  // namespace remusd::backup
