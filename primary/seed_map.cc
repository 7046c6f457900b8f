// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/seed_map.h"

#include <cstring>

namespace remusd::primary {
namespace {

uint64_t words_for(uint64_t pages) {
  return (pages + 63) / 64;
}

Status corrupt(const std::string& what) {
  return {Code::corrupt, "SEED record: " + what};
}

}  // namespace

uint64_t SeedMap::limit_bytes(uint64_t memory_pages) {
  return memory_pages * sizeof(ckpt::PageDigest) + words_for(memory_pages) * sizeof(uint64_t);
}

Result<std::unique_ptr<SeedMap>> SeedMap::make(uint64_t memory_pages) {
  auto digests = Mapping::anonymous(memory_pages * sizeof(ckpt::PageDigest), /*populate=*/false);
  if (!digests.ok()) return digests.status().with_context("keep what the backup says it has");
  return std::unique_ptr<SeedMap>(new SeedMap(memory_pages, *std::move(digests)));
}

SeedMap::SeedMap(uint64_t memory_pages, Mapping digests)
    : memory_pages_(memory_pages), digests_(std::move(digests)), told_(words_for(memory_pages)) {}

Status SeedMap::add(const ckpt::Seed& record) {
  if (complete_) return corrupt("another one after the last");
  if (begun_ && record.key != key_) return corrupt("its key differs from the first one's");
  key_ = record.key;
  begun_ = true;
  size_t index = 0;
  for (const PageRange& run : record.runs) {
    if (run.first < next_)
      return corrupt("page " + std::to_string(run.first) + " is out of order or told twice");
    if (run.first >= memory_pages_ || run.count > memory_pages_ - run.first)
      return corrupt("page " + std::to_string(run.first + run.count - 1) + " lies outside the memory");
    next_ = run.first + run.count;
    for (uint64_t page = run.first; page < next_; ++page) {
      const ckpt::PageDigest digest = record.digest(index++);
      std::memcpy(digests_.data() + page * sizeof digest, &digest, sizeof digest);
      told_[page / 64] |= uint64_t{1} << (page % 64);
    }
    pages_ += run.count;
  }
  complete_ = record.last;
  return {};
}

}  // namespace remusd::primary
