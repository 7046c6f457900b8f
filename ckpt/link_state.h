// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What link.cc and link_tls.cc share; included by them only.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "ckpt/link.h"
#include "ckpt/mapping.h"
#include "ckpt/ring.h"

namespace remusd::ckpt {

/// Room in the send ring for so many bytes of frames, whatever comes of TLS besides.
size_t cipher_queue_bytes(size_t plain_bytes);
/// What the kernel may receive of cipher text at once: little enough to be in the cache still when it is
/// decrypted, and while it is the peer can send on.
inline constexpr size_t kCipherBytes = 256u << 10;

struct Link::State {
  ScopedFd socket;
  ScopedFd wake_fd;
  uint64_t wake_count = 0;  // written by the kernel
  enum Rest : int { kAwake, kAsleep, kWoken };
  std::atomic<int> rest = kAwake;  // of the owner; wake() makes it kWoken, the owner all else

  FrameWriter writer;
  FrameReader reader;
  LinkStats stats;
  bool open = true;
  Status reason;  // why it is closed

  Mapping send;  // a ring: `queued` bytes from `head`
  size_t head = 0, queued = 0;
  size_t send_limit = 0;  // of frames; what more there is in `send` is for TLS
  Mapping receive;
  size_t begin = 0, end = 0;  // received (and decrypted) and not yet delivered

  std::unique_ptr<TlsSession> tls;  // none: plain text
  Mapping cipher;
  std::span<const std::byte> undecrypted;  // of it
  Status failure;                          // of TLS; once not ok only what is queued is still sent
  Time give_up{};  // then: when the link is closed whether or not the peer has read it

  size_t sending = 0;  // bytes handed to the kernel, 0: none
  bool receiving = false, waking = false;
  bool sent = false;  // since wait() returned last
  bool in_wait = false;
  bool at_end = false;      // the peer will send no more
  bool decrypting = false;  // TLS may hold plain text that found no room
  bool appending = false;
  int receive_error = 0, send_error = 0;

  Ring ring;  // last: gone before the buffers are

  ~State() { quiesce(); }

  void on_completion(uint64_t operation, int result);
  void reap() {
    ring.reap([this](uint64_t operation, int result) { on_completion(operation, result); });
  }
  void prepare_send();
  void prepare_queued();
  void prepare_receive();
  void make_room();
  void prepare_wake();
  void deliver(const std::function<Status(const FrameView&)>& on_frame, uint64_t* delivered);
  void enqueue(std::span<const std::byte> bytes);
  void send_early();
  bool take_cipher(std::span<const std::byte> bytes);
  bool decrypt();
  void encrypt(const FrameHeader& header, std::span<const std::byte> body);
  void fail(Status why);
  size_t space() const;
  Time own_deadline() const;
  void quiesce();
  void close(Status why);

  /// Both false when wake() was called, which counts from then on as seen.
  bool rest_begins() {
    int was = kAwake;
    if (rest.compare_exchange_strong(was, kAsleep)) return true;
    rest.exchange(kAwake);  // not a store: what a second waker did before must be seen, too
    return false;
  }
  bool rest_ends() { return rest.exchange(kAwake) != kWoken; }
};

}  // namespace remusd::ckpt
