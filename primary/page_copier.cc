// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/page_copier.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace remusd::primary {
namespace {

bool is_zero(const std::byte* page) {
  static constexpr std::byte kZero[kPageSize] = {};
  return std::memcmp(page, kZero, kPageSize) == 0;
}

}  // namespace

void PageCopier::abandon() {
  for (Chunk** chunk : {&chunk_, &kept_}) {
    if (*chunk != nullptr) staging_.recycle(std::exchange(*chunk, nullptr));
  }
}

bool PageCopier::make_ready(bool* waited) {
  if (chunk_ == nullptr) chunk_ = staging_.acquire_chunk(waited);
  return chunk_ != nullptr;
}

bool PageCopier::copy(const PageSet& pages, uint64_t epoch, bool skip_zero, bool* waited, uint64_t* copied) {
  const std::span<const std::byte> memory = guest_.memory();
  const uint64_t memory_pages = memory.size() / kPageSize;
  for (PageRange range : pages) {
    REMUSD_ASSERT(range.first < memory_pages && range.count <= memory_pages - range.first,
                  "a dirty page lies within the guest's memory");
    while (range.count > 0) {
      const std::byte* from = memory.data() + range.first * kPageSize;
      if (skip_zero && is_zero(from)) {
        ++range.first;
        --range.count;
        continue;
      }
      if (!make_ready(waited)) return false;
      chunk_->epoch = epoch;
      const uint64_t room = kChunkPages - chunk_->pages;
      const uint64_t count = skip_zero ? 1 : std::min(range.count, room);
      std::memcpy(chunk_->data.data() + chunk_->pages * kPageSize, from, count * kPageSize);
      for (uint64_t i = 0; i < count; ++i) chunk_->numbers[chunk_->pages + i] = range.first + i;
      chunk_->pages += static_cast<uint32_t>(count);
      *copied += count;
      range.first += count;
      range.count -= count;
      if (chunk_->pages == kChunkPages) flush(true);
    }
  }
  return true;
}

bool PageCopier::copy_against(const SeedMap& seed, const PageSet& dirty_pages, bool* waited,
                              uint64_t* copied) {
  const std::span<const std::byte> memory = guest_.memory();
  const uint64_t memory_pages = memory.size() / kPageSize;
  auto range = dirty_pages.begin();
  for (uint64_t page = 0; page < memory_pages; ++page) {
    while (range != dirty_pages.end() && page >= range->first + range->count) ++range;
    const bool dirty = range != dirty_pages.end() && page >= range->first;
    const bool told = seed.has(page);
    if (!dirty && !told) continue;
    const std::byte* from = memory.data() + page * kPageSize;
    if (dirty && told) {
      const ckpt::PageDigest here = ckpt::digest_of(seed.key(), {from, kPageSize});
      if (here == seed.digest(page)) {
        if (!keep(page, here, seed, waited)) return false;
        ++*copied;
        continue;
      }
    }
    if (dirty && !told && is_zero(from)) continue;
    if (!make_ready(waited)) return false;
    chunk_->epoch = 1;
    std::byte* to = chunk_->data.data() + chunk_->pages * kPageSize;
    if (dirty) {
      std::memcpy(to, from, kPageSize);
    } else {
      std::memset(to, 0, kPageSize);  // Nobody wrote it: looking at it would make the guest's memory larger.
    }
    chunk_->numbers[chunk_->pages++] = page;
    ++*copied;
    if (chunk_->pages == kChunkPages) flush(true);
  }
  flush_kept(seed);
  return true;
}

/// `digest`: of the page as it is here, which the backup compares with its own.
bool PageCopier::keep(uint64_t page, const ckpt::PageDigest& digest, const SeedMap& seed, bool* waited) {
  if (kept_ == nullptr) kept_ = staging_.acquire_chunk(waited);
  if (kept_ == nullptr) return false;
  kept_->epoch = 1;
  const std::span<uint64_t> numbers = kept_->numbers;
  const size_t end = 2 * size_t{kept_->runs};
  if (end > 0 && numbers[end - 2] + numbers[end - 1] == page) {
    ++numbers[end - 1];
  } else {
    numbers[end] = page;
    numbers[end + 1] = 1;
    ++kept_->runs;
  }
  std::memcpy(kept_->data.data() + kept_->pages * sizeof(ckpt::PageDigest), &digest, sizeof digest);
  ++kept_->pages;
  ++matched_pages_;
  if (kept_->pages == ckpt::kMaxSeedPages || 2 * kept_->runs == kChunkPages) flush_kept(seed);
  return true;
}

void PageCopier::flush_kept(const SeedMap& seed) {
  if (kept_ == nullptr) return;
  kept_->digest = ckpt::digest_of(seed.key(), kept_->data.first(kept_->pages * sizeof(ckpt::PageDigest)));
  staging_.put({Item::Kind::chunk, std::exchange(kept_, nullptr)});
}

void PageCopier::flush(bool wake) {
  if (chunk_ == nullptr || chunk_->pages == 0) return;
  staging_.put({Item::Kind::chunk, std::exchange(chunk_, nullptr)}, wake);
}

}  // namespace remusd::primary
