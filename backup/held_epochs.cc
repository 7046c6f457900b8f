// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/held_epochs.h"

#include <cstring>
#include <utility>

namespace remusd::backup {
namespace {

constexpr uint64_t kBodyCost = 64;  // of one in memory, beyond its bytes

}  // namespace

void HeldEpochs::add(uint64_t epoch, ckpt::Bytes body) {
  REMUSD_ASSERT(kept_.empty() || epoch >= kept_.back().epoch, "epochs come in order");
  if (epoch <= settled_) return;  // The primary was faster than this host's memory.
  bytes_ += body.size() + kBodyCost;
  kept_.push_back({epoch, std::move(body)});
}

void HeldEpochs::settled(uint64_t epoch) {
  settled_ = epoch;
  while (!kept_.empty() && kept_.front().epoch <= epoch) {
    bytes_ -= kept_.front().body.size() + kBodyCost;
    kept_.pop_front();
  }
}

Status HeldEpochs::apply(const disk::Media& disks) const {
  std::vector<bool> touched(disks.size());
  for (const Kept& kept : kept_) {
    REMUSD_TRY(ckpt::apply_disk(kept.body, [&](const ckpt::DiskRun& run) {
      touched[run.disk] = true;
      return disk::write_run(*disks[run.disk], run);
    }));
  }
  for (size_t i = 0; i < disks.size(); ++i)
    if (touched[i]) REMUSD_TRY(disks[i]->flush());
  return {};
}

Result<bool> is_held(ckpt::View body, uint32_t held) {
  uint32_t count = 0;
  std::memcpy(&count, body.data(), sizeof count);
  size_t of_held = 0;
  for (uint32_t i = 0; i < count; ++i) {
    ckpt::DiskEntry entry;
    std::memcpy(&entry, body.data() + 8 + i * sizeof entry, sizeof entry);
    of_held += held >> entry.disk & 1U;
  }
  if (of_held == 0 || of_held == count) return of_held > 0;
  return Status(Code::corrupt, "DISK record: runs of held disks and of others in one body");
}

}  // namespace remusd::backup
