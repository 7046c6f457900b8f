// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/local_disk.h"

#include <cstring>

namespace remusd::simulate {
namespace {

constexpr uint64_t kTorn = ~uint64_t{0};

}  // namespace

BlockBytes block_of(uint64_t value) {
  BlockBytes bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  std::memcpy(bytes.data() + sizeof value, &value, sizeof value);
  return bytes;
}

uint64_t value_of(const BlockBytes& block) {
  uint64_t first = 0, second = 0;
  std::memcpy(&first, block.data(), sizeof first);
  std::memcpy(&second, block.data() + sizeof first, sizeof second);
  return first == second ? first : kTorn;
}

LocalDisk::LocalDisk()
    : disk_(power_.add("disk", kDiskSizes[0])), journal_(power_.add("journal", disk::kMinJournalBytes)) {
  media_.push_back(disk_);
}

Status LocalDisk::write(uint32_t block, uint64_t value) {
  return disk_->write(place_of(block), block_of(value));
}

uint64_t LocalDisk::read(uint32_t block) const {
  BlockBytes bytes{};
  const Status status = disk_->read(place_of(block), bytes);
  REMUSD_ASSERT(status.ok(), "a host without power asks for nothing");
  return value_of(bytes);
}

Blocks LocalDisk::blocks() const {
  Blocks values;
  for (uint32_t block = 0; block < kDiskBlocks; ++block) values[block] = read(block);
  return values;
}

void LocalDisk::clear() {
  disk_->renew();
  journal_->renew();
}

}  // namespace remusd::simulate
