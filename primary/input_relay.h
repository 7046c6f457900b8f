// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <deque>
#include <mutex>
#include <span>

#include "ckpt/wire.h"
#include "netbuf/net_buffer.h"
#include "primary/sender.h"

namespace remusd::primary {

/// What comes for a guest that stands for a switchover: kept, in order, and passed on once the backup may
/// have it; kept even then, because the guest may be won back. Bounded: what comes beyond is dropped, as a
/// full card would. Thread-safe.
class InputRelay {
 public:
  /// False: there is no room.
  bool take(size_t card, std::span<const std::byte> frame);
  /// Passes on as much as the link has room for.
  void forward(Sender* sender);
  /// The guest runs here again, and never ran there: what was passed on is given to it as well.
  void give_back(netbuf::NetBuffer* net);

 private:
  std::mutex mutex_;
  std::deque<ckpt::Bytes> bodies_;  // of INPUT frames, oldest first
  size_t forwarded_ = 0;            // so many of them
};

}  // namespace remusd::primary
