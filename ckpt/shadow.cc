// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/shadow.h"

#include <algorithm>
#include <limits>

namespace remusd::ckpt {

Result<Shadow> Shadow::make(uint64_t memory_pages, size_t bytes) {
  REMUSD_ASSERT(bytes >= kPageSize && memory_pages > 0, "a shadow has room for a page");
  // More slots than pages are never used.
  const size_t slots = std::min<uint64_t>(bytes / kPageSize, memory_pages);
  REMUSD_ASSERT(slots < std::numeric_limits<uint32_t>::max(), "slots are numbered by 32 bits");
  auto content = Mapping::anonymous(slots * kPageSize, /*populate=*/false);
  if (!content.ok()) return content.status().with_context("keep copies of pages for deltas");
  auto index = Mapping::anonymous(memory_pages * sizeof(uint32_t), /*populate=*/false);
  if (!index.ok()) return index.status().with_context("keep copies of pages for deltas");
  return Shadow(*std::move(content), *std::move(index), slots);
}

Shadow::Shadow(Mapping content, Mapping index, size_t slots)
    : content_(std::move(content)), index_(std::move(index)), max_slots_(slots) {
  slots_.reserve(max_slots_);
}

uint32_t& Shadow::index_of(uint64_t page) const {
  REMUSD_ASSERT(page < index_.size() / sizeof(uint32_t), "pages lie in the guest's memory");
  return reinterpret_cast<uint32_t*>(index_.data())[page];
}

std::byte* Shadow::find(uint64_t page) {
  const uint32_t number = index_of(page);
  if (number == 0) return nullptr;
  Slot& slot = slots_[number - 1];
  REMUSD_ASSERT(slot.page == page, "the index leads to the page's own slot");
  slot.patience = kPatience;
  return content_.data() + size_t{number - 1} * kPageSize;
}

std::byte* Shadow::insert(uint64_t page) {
  uint32_t& number = index_of(page);
  REMUSD_ASSERT(number == 0, "a page is kept once");
  uint32_t slot = 0;
  if (slots_.size() < max_slots_) {
    slot = static_cast<uint32_t>(slots_.size());
    slots_.push_back({page, kPatience});
  } else {
    slot = static_cast<uint32_t>(hand_);
    hand_ = (hand_ + 1) % max_slots_;
    if (slots_[slot].patience > 0) {
      --slots_[slot].patience;
      return nullptr;
    }
    index_of(slots_[slot].page) = 0;
    ++evicted_;
    slots_[slot] = {page, kPatience};
  }
  number = slot + 1;
  return content_.data() + size_t{slot} * kPageSize;
}

size_t Shadow::used_bytes() const {
  return slots_.size() * (kPageSize + sizeof(Slot)) + index_.size();
}

size_t Shadow::limit_bytes() const {
  return max_slots_ * (kPageSize + sizeof(Slot)) + index_.size();
}

}  // namespace remusd::ckpt
