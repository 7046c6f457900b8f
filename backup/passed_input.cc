// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/passed_input.h"

namespace remusd::backup {
namespace {

constexpr size_t kMaxFrames = 1024;

}  // namespace

void PassedInput::take(const ckpt::Input& input) {
  if (frames_.size() >= kMaxFrames) {
    ++dropped_;
    return;
  }
  frames_.emplace_back(input.card, ckpt::Bytes(input.frame.begin(), input.frame.end()));
}

void PassedInput::give(netbuf::NetBuffer* net) {
  for (const auto& [card, frame] : frames_) (void)net->inject(card, frame);  // it counts what it drops
  frames_.clear();
  net->count_dropped_input(std::exchange(dropped_, 0));
}

}  // namespace remusd::backup
