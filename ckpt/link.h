// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A connection to the peer over io_uring: frames in, frames out, bounded both ways.
//
// One thread owns a Link and calls everything but wake(). No call but wait() blocks. Sending: append() copies
// into a bounded send queue and the ring sends it in the background, in order; when send_space() is too
// small the caller waits (backpressure: the epoch is lengthened, nothing is dropped or grown). Receiving:
// one buffer that holds at least one whole frame; frames are handed to the handler from wait().
//
// States: open -> closed(status). A closed link stays closed; frames that were already received whole before
// the close are delivered first.
//
// With a TlsSession the frames go through TLS. Its handshake is part of wait(): it begins with the first one,
// and until it is done there is no send space and nothing is delivered. One that fails, or is not done in
// time, closes the link; the peer is told why before, as far as it listens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "ckpt/clock.h"
#include "ckpt/frame.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"
#include "ckpt/tls.h"

namespace remusd::ckpt {

struct LinkOptions {
  size_t send_queue_bytes = 16u << 20;
  size_t receive_buffer_bytes = 4u << 20;  // at least one whole frame; two are better
};
inline constexpr size_t kMinSendQueueBytes = 64u << 10;
/// What a link holds, at most.
size_t link_memory_bytes(const LinkOptions& options, bool tls);

struct LinkStats {
  uint64_t sent_bytes = 0;   // taken by the kernel; with TLS, of cipher text
  uint64_t sent_frames = 0;  // queued
  uint64_t received_bytes = 0, received_frames = 0;
  uint64_t send_queue_full = 0;  // times append() was refused
  uint64_t system_calls = 0;     // of the owner's thread
};

class Link {
 public:
  /// Takes over a connected stream socket (TCP gets TCP_NODELAY; unix sockets serve tests). A byte that
  /// was read from it before must be passed in `already_read`.
  static Result<std::unique_ptr<Link>> adopt(ScopedFd socket, const LinkOptions& options,
                                             std::span<const std::byte> already_read = {});
  /// The same with TLS; none for plain text.
  static Result<std::unique_ptr<Link>> adopt(ScopedFd socket, const LinkOptions& options,
                                             std::unique_ptr<TlsSession> tls);
  ~Link();

  FrameWriter& writer();
  FrameReader& reader();

  /// Queues one frame. Never blocks; when much is queued it starts a send at once. `exhausted` when the queue
  /// has no room now: nothing was queued, wait and try again; `invalid` when it is larger than the whole
  /// queue. Returns the frame's checksum (for EpochDigest) through *checksum unless null.
  Status append(FrameType type, uint64_t epoch, std::span<const std::byte> body,
                uint64_t* checksum = nullptr);
  /// Bytes that append() takes now, headers included.
  size_t send_space() const;
  /// Nothing is queued or in flight.
  bool drained() const;
  /// What stats().sent_bytes will have reached when all that is queued now has been taken by the kernel.
  uint64_t sent_bytes_when_drained() const;
  /// The link has TLS and its handshake is done.
  bool secured() const;
  /// The node that the peer proved to be. Empty unless secured.
  const std::string& peer_node() const;

  /// Submits, then sleeps until a frame, send room, a wake() or `deadline`. Calls `on_frame` for each frame
  /// received (its body is valid during the call); a failing Status from it closes the link with that status.
  /// on_frame may call append() and close(), not wait(). Returns the status of a closed link, else ok; ok
  /// without anything having happened is possible. However late it is called, it looks at what has arrived
  /// before it considers the deadline passed, and delivers all that was received whole.
  Status wait(Time deadline, const std::function<Status(const FrameView&)>& on_frame);

  /// From any thread, while the Link lives: makes a present or the next wait() return early. Makes a system
  /// call only when the owner sleeps. The Link must live until this has returned, not only until its effect
  /// is seen.
  void wake();

  bool open() const;
  const Status& close_reason() const;
  /// Ends the connection; what is queued and not yet sent is lost: wait until drained() first where it
  /// matters. An ok `reason` is replaced by "closed on this side". A second close changes nothing.
  void close(Status reason);
  const LinkStats& stats() const;

 private:
  struct State;
  explicit Link(std::unique_ptr<State> state);
  static Result<std::unique_ptr<Link>> adopt(ScopedFd socket, const LinkOptions& options,
                                             std::span<const std::byte> already_read,
                                             std::unique_ptr<TlsSession> tls);
  std::unique_ptr<State> state_;
};

/// Connects to "host:port" (IPv4, IPv6 in brackets, or a name) or "unix:/path" within `timeout`.
Result<ScopedFd> connect_to(const std::string& address, Duration timeout);

}  // namespace remusd::ckpt
