// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A simulated network card's way out: what QEMU's `stream` netdev with server=on does. One peer at a time
// over a unix socket; each frame is a be32 length and its bytes. Frames sent while no peer is connected are
// lost, as on a cable that is unplugged.
#pragma once

#include <poll.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"

namespace remusd::guest::sim {

/// The largest frame taken, as QEMU's NET_BUFSIZE. A peer that announces more, or none, is disconnected.
inline constexpr size_t kMaxFrameBytes = 4096 + 65536;

/// Belongs to one thread at a time. Nothing here blocks.
class Card {
 public:
  /// Listens on `path`, which must not exist, and removes it at the end.
  static Result<std::unique_ptr<Card>> listen(const std::string& path);
  Card(std::string path, ScopedFd listener);
  ~Card();
  Card(const Card&) = delete;
  Card& operator=(const Card&) = delete;

  /// What to wait for. `input` is false while a received frame could not be handed over.
  pollfd wanted() const;
  /// Accepts, reads and hands over frames until `deliver` returns false (that frame is offered again next
  /// time), writes what a former send() left over.
  void service(const std::function<bool(std::span<const std::byte>)>& deliver);
  /// False when the peer does not take the frame now; nothing of it was sent then.
  bool send(std::span<const std::byte> frame);

 private:
  void disconnect();
  void flush_rest();
  bool read_some();
  bool hand_over(const std::function<bool(std::span<const std::byte>)>& deliver);

  std::string path_;
  ScopedFd listener_;
  ScopedFd peer_;
  std::vector<std::byte> received_;  // received_size_ bytes of it: the start of a frame, or more
  size_t received_size_ = 0;
  bool stuck_ = false;           // a whole frame is there and was not taken
  std::vector<std::byte> rest_;  // of the frame that was sent in part
};

}  // namespace remusd::guest::sim
