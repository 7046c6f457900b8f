// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ckpt/records.h"
#include "netbuf/net_buffer.h"

namespace remusd::backup {

/// What came for a guest that stands for a switchover and was passed on by its primary, until it runs here.
/// Bounded: what comes beyond is dropped, as a full card would, and counted with the rest that was.
class PassedInput {
 public:
  void take(const ckpt::Input& input);
  /// The guest runs: gives it all, in order.
  void give(netbuf::NetBuffer* net);

 private:
  std::vector<std::pair<uint16_t, ckpt::Bytes>> frames_;  // card, frame
  uint64_t dropped_ = 0;
};

}  // namespace remusd::backup
