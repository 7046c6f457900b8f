// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <vector>

#include "ckpt/page_codec.h"

namespace remusd::ckpt {

inline constexpr size_t kTable = 8;  // where the page table of a PAGES body begins

inline PageEntry entry_of(const std::vector<std::byte>& body, size_t index) {
  PageEntry entry;
  std::memcpy(&entry, body.data() + kTable + index * sizeof entry, sizeof entry);
  return entry;
}

}  // namespace remusd::ckpt
