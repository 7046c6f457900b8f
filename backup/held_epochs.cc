// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/held_epochs.h"

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

}  // namespace remusd::backup
