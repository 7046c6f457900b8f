// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The part of a Link that goes through TLS. link.cc says what always holds.
#include <sys/socket.h>

#include <algorithm>

#include "ckpt/link_state.h"

namespace remusd::ckpt {
namespace {

/// How long a side that refused the other in the handshake waits for it to have read why.
constexpr Duration kAlertPatience = std::chrono::seconds(1);

/// The inverse, for `free_bytes` of room and `kept` bytes that are still to be encrypted.
size_t plain_room(size_t free_bytes, size_t kept) {
  const size_t taken = kTlsReserveBytes + kept + 3 * kTlsRecordOverhead;
  if (free_bytes <= taken) return 0;
  const size_t records = (free_bytes - taken) / (kTlsRecordBytes + kTlsRecordOverhead) + 1;
  return free_bytes - taken - std::min(free_bytes - taken, (records - 1) * kTlsRecordOverhead);
}

}  // namespace

size_t cipher_queue_bytes(size_t plain_bytes) {
  return plain_bytes + kTlsRecordOverhead * (plain_bytes / kTlsRecordBytes + 3) + kTlsReserveBytes;
}

size_t link_memory_bytes(const LinkOptions& options, bool tls) {
  return options.receive_buffer_bytes +
         (tls ? cipher_queue_bytes(options.send_queue_bytes) + kCipherBytes : options.send_queue_bytes);
}

bool Link::State::take_cipher(std::span<const std::byte> bytes) {
  if (bytes.size() > send.size() - queued) return false;
  enqueue(bytes);
  if (appending) {  // elsewhere a completion that is reaped here could be slept over
    reap();
    send_early();
  }
  return true;
}

/// Uses up what was received as far as there is room for it. True: there was not.
bool Link::State::decrypt() {
  if (!failure.ok()) undecrypted = {};
  if (!failure.ok() || (tls->established() && undecrypted.empty() && !decrypting)) return false;
  make_room();
  const bool before = tls->established();
  size_t got = 0;
  const std::span<std::byte> into = receive.bytes().subspan(end);
  Status status = tls->receive(&undecrypted, into, &got, &at_end);
  end += got;
  // The owner may send now.
  if (tls->established() != before) sent = true;
  if (!status.ok()) fail(std::move(status));
  return decrypting = got == into.size();
}

/// Nothing more is believed. In the handshake the peer has the time to read why, and to say no more: data
/// that it has sent already would otherwise turn our close into a reset, which overtakes the alert.
void Link::State::fail(Status why) {
  if (!failure.ok()) return;
  failure = std::move(why);
  give_up = Clock::now();
  if (!tls->established() && queued > 0) give_up += kAlertPatience;
  prepare_queued();
  (void)ring.submit();
}

/// When the link is closed whatever its owner waits for.
Time Link::State::own_deadline() const {
  if (!tls || (tls->established() && failure.ok())) return Time::max();
  return failure.ok() ? tls->deadline() : give_up;
}

void Link::State::encrypt(const FrameHeader& header, std::span<const std::byte> body) {
  appending = true;
  Status status = tls->write(std::as_bytes(std::span(&header, 1)));
  if (status.ok()) status = tls->write(body);
  appending = false;
  if (!status.ok()) fail(std::move(status));  // the next wait() closes
}

size_t Link::State::space() const {
  if (!open) return 0;
  const size_t free_bytes = send.size() - queued;
  if (!tls) return free_bytes;
  if (!tls->established() || !failure.ok()) return 0;
  return std::min(send_limit, plain_room(free_bytes, tls->pending()));
}

}  // namespace remusd::ckpt
