// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// States: open -> closed(reason). While open at most one receive, one send and one read of the wake-up
// descriptor are in the kernel's hands; `receiving`, `sending` and `waking` say which. What always holds:
//
// * The kernel writes only into receive_[end_, size) and reads only from the `sending` bytes at the head of
//   the send ring: neither is moved or reused while the operation is out. Both buffers are allocated once.
// * Operations are prepared just before they are submitted, from wait() or append(), never at adopt(): the
//   kernel ends a thread's operations with the thread, and the adopting thread may be a short-lived one.
// * What tells a wake-up is `rest`, exchanged by both sides; the descriptor only ends a sleep. It is written
//   when the owner may sleep, so its read may complete later than the wake-up was seen: that ends no wait.
// * close() cancels what is out and waits for it, so a closed link owns its buffers alone.
// * With TLS the send ring holds cipher text: append() encrypts into it, so that what is queued is bounded by
// it as
//   before. The kernel receives into cipher_, which deliver() always uses up; receive_ holds what was
//   decrypted. Small frames share a record, which ends when a send begins: nothing waits for a record to be
//   full.
#include "ckpt/link.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "ckpt/link_state.h"

namespace remusd::ckpt {
namespace {

constexpr size_t kMaxFrameBytes = sizeof(FrameHeader) + kMaxBodyBytes;
/// append() itself starts a send when this much waits and none is out, so that the wire does not idle while
/// the caller encodes the next frame; smaller frames go out together with the next wait().
constexpr size_t kEagerSendBytes = 64u << 10;
/// A wait is cut into pieces of this length; only so that no arithmetic on a far deadline can overflow.
constexpr Duration kLongestSleep = std::chrono::hours(1);
constexpr unsigned kRingEntries = 16;

enum Operation : uint64_t { kReceive = 1, kSend, kWake, kCancel };

/// The operation ended without a verdict on the connection: prepare it again.
bool again(int result) {
  return result == -EINTR || result == -EAGAIN || result == -ECANCELED;
}

/// A peer that is configured otherwise than we are begins like this.
bool looks_like_tls(std::span<const std::byte> begin) {
  return begin.size() >= 2 && (begin[0] == std::byte{0x16} || begin[0] == std::byte{0x15}) &&
         begin[1] == std::byte{3};
}

Status broken(const std::string& when, int error) {
  return {Code::unavailable,
          Status::from_errno("the connection to the peer broke while " + when, error).message()};
}

}  // namespace

void Link::State::on_completion(uint64_t operation, int result) {
  switch (operation) {
    case kReceive:
      receiving = false;
      if (result > 0) {
        const auto bytes = static_cast<size_t>(result);
        stats.received_bytes += bytes;
        if (tls) {
          undecrypted = cipher.bytes().first(bytes);
        } else {
          end += bytes;
          REMUSD_ASSERT(end <= receive.size(), "the kernel was given what is free");
        }
      } else if (result == 0) {
        at_end = true;
      } else if (!again(result)) {
        receive_error = -result;
      }
      break;
    case kSend:
      REMUSD_ASSERT(result <= static_cast<int64_t>(sending), "no more is sent than was handed over");
      sending = 0;
      if (result > 0) {
        const auto bytes = static_cast<size_t>(result);
        head = (head + bytes) % send.size();
        queued -= bytes;
        if (queued == 0) head = 0;  // Memory that was used just now is still in the cache.
        stats.sent_bytes += bytes;
        sent = true;
      } else if (!again(result)) {
        send_error = result == 0 ? EPIPE : -result;
        // What the peer said before it went is still read, then comes the end.
        ::shutdown(socket.get(), SHUT_RD);
      }
      break;
    case kWake:
      waking = false;
      break;
    default:
      break;
  }
}

void Link::State::prepare_send() {
  if (tls && sending == 0 && tls->pending() > 0 && failure.ok()) {
    if (Status status = tls->flush(); !status.ok()) fail(std::move(status));
  }
  prepare_queued();
}

void Link::State::prepare_queued() {
  if (sending > 0 || queued == 0 || send_error != 0) return;
  sending = std::min(queued, send.size() - head);
  io_uring_sqe* entry = ring.prepare();
  io_uring_prep_send(entry, socket.get(), send.data() + head, sending, MSG_NOSIGNAL);
  io_uring_sqe_set_data64(entry, kSend);
}

void Link::State::prepare_receive() {
  if (receiving || at_end || receive_error != 0) return;
  std::span<std::byte> into = cipher.bytes();
  if (!tls) {
    make_room();
    into = receive.bytes().subspan(end);
  }
  REMUSD_ASSERT(undecrypted.empty(), "what was received is used up before more is");
  receiving = true;
  io_uring_sqe* entry = ring.prepare();
  io_uring_prep_recv(entry, socket.get(), into.data(), into.size(), 0);
  io_uring_sqe_set_data64(entry, kReceive);
}

void Link::State::make_room() {
  if (begin == end) {
    begin = end = 0;
  } else if (receive.size() - end < receive.size() / 2) {
    // At most one byte is moved for each byte received, and then a whole frame has room.
    std::memmove(receive.data(), receive.data() + begin, end - begin);
    end -= begin;
    begin = 0;
  }
  REMUSD_ASSERT(end < receive.size(), "what is held is less than one frame, and the buffer is more");
}

void Link::State::prepare_wake() {
  if (waking) return;
  waking = true;
  io_uring_sqe* entry = ring.prepare();
  io_uring_prep_read(entry, wake_fd.get(), &wake_count, sizeof wake_count, 0);
  io_uring_sqe_set_data64(entry, kWake);
}

void Link::State::deliver(const std::function<Status(const FrameView&)>& on_frame, uint64_t* delivered) {
  for (bool more = true; more;) {
    more = tls && decrypt();
    while (open) {
      FrameView frame;
      size_t consumed = 0;
      const std::span<const std::byte> held(receive.data() + begin, end - begin);
      if (Status status = reader.next(held, &frame, &consumed); !status.ok()) {
        if (!tls && stats.received_frames == 0 && looks_like_tls(held)) {
          status = Status(Code::denied,
                          "the peer wants TLS, and this node is configured for plain text "
                          "(insecure = true): configure both alike");
        }
        return close(std::move(status));
      }
      if (consumed == 0) break;
      begin += consumed;
      ++stats.received_frames;
      ++*delivered;
      if (Status status = on_frame(frame); !status.ok()) return close(std::move(status));
    }
    if (!open) return;
  }
  if (tls && !tls->established() && failure.ok() && Clock::now() >= own_deadline())
    return close({Code::timed_out, "TLS: the peer did not complete the handshake in time"});
  if (!failure.ok()) {
    const bool heard = at_end || receive_error != 0 || send_error != 0;
    if (heard || Clock::now() >= own_deadline()) close(failure);
    return;
  }
  if (send_error != 0 && (at_end || receive_error != 0)) return close(broken("sending", send_error));
  if (receive_error != 0) return close(broken("receiving", receive_error));
  if (at_end && tls && !tls->established()) {
    return close({Code::unavailable,
                  "the peer closed the connection during the TLS handshake; its log tells why, "
                  "or it is configured with insecure = true"});
  }
  if (at_end) {
    close({Code::unavailable, begin == end ? "the peer closed the connection"
                                           : "the peer closed the connection in the middle of a frame"});
  }
}

void Link::State::enqueue(std::span<const std::byte> bytes) {
  const size_t tail = (head + queued) % send.size();
  const size_t first = std::min(bytes.size(), send.size() - tail);
  if (first > 0) std::memcpy(send.data() + tail, bytes.data(), first);
  if (first < bytes.size()) std::memcpy(send.data(), bytes.data() + first, bytes.size() - first);
  queued += bytes.size();
}

/// The wire does not idle while the caller encodes or encrypts on.
void Link::State::send_early() {
  if (sending > 0 || queued < kEagerSendBytes) return;
  prepare_queued();
  // The frame is queued whatever happens here: a failure of the ring shows in the next wait().
  (void)ring.submit();
}

void Link::State::quiesce() {
  if (!socket.valid()) return;
  // All three wait in poll when they wait, and such are cancelled at once. What the kernel has taken of a
  // send still reaches the peer.
  for (const auto& [operation, out] :
       {std::pair{kReceive, receiving}, {kSend, sending > 0}, {kWake, waking}}) {
    if (!out) continue;
    io_uring_sqe* entry = ring.prepare();
    io_uring_prep_cancel64(entry, operation, 0);
    io_uring_sqe_set_data64(entry, kCancel);
  }
  while (receiving || sending > 0 || waking) {
    const Status status = ring.submit_and_wait(std::chrono::seconds(1));
    REMUSD_ASSERT(status.ok(), "the kernel must give the buffers back before they are freed");
    reap();
  }
  socket.reset();
}

void Link::State::close(Status why) {
  if (!open) return;
  open = false;
  reason = why.ok() ? Status(Code::unavailable, "the connection was closed on this side") : std::move(why);
  quiesce();
}

Result<std::unique_ptr<Link>> Link::adopt(ScopedFd socket, const LinkOptions& options,
                                          std::span<const std::byte> already_read,
                                          std::unique_ptr<TlsSession> tls) {
  if (options.receive_buffer_bytes < kMaxFrameBytes || options.send_queue_bytes < kMinSendQueueBytes) {
    return Status(Code::invalid, "a link needs a receive buffer of at least " +
                                     std::to_string(kMaxFrameBytes) + " bytes and a send queue of at least " +
                                     std::to_string(kMinSendQueueBytes));
  }
  if (already_read.size() > options.receive_buffer_bytes)
    return Status(Code::invalid, "more was read before the link began than its receive buffer holds");

  auto state = std::make_unique<State>();
  // A non-blocking socket would make the ring report EAGAIN instead of waiting.
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK) < 0)
    return Status::from_errno("take over a connection");
  int domain = 0;
  socklen_t size = sizeof domain;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0)
    return Status::from_errno("take over a connection");
  const int on = 1;
  if (domain != AF_UNIX && ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0)
    return Status::from_errno("set TCP_NODELAY");

  state->wake_fd.reset(::eventfd(0, EFD_CLOEXEC));
  if (!state->wake_fd) return Status::from_errno("make an eventfd");
  const size_t send_bytes = tls ? cipher_queue_bytes(options.send_queue_bytes) : options.send_queue_bytes;
  REMUSD_ASSIGN(state->send, Mapping::anonymous(send_bytes, /*populate=*/false));
  state->send_limit = options.send_queue_bytes;
  REMUSD_ASSIGN(state->receive, Mapping::anonymous(options.receive_buffer_bytes, /*populate=*/false));
  REMUSD_TRY(state->ring.open(kRingEntries));
  if (!already_read.empty()) std::memcpy(state->receive.data(), already_read.data(), already_read.size());
  state->end = already_read.size();
  state->stats.received_bytes = already_read.size();
  if (tls) {
    REMUSD_ASSIGN(state->cipher, Mapping::anonymous(kCipherBytes, /*populate=*/false));
    tls->set_output(
        [owner = state.get()](std::span<const std::byte> bytes) { return owner->take_cipher(bytes); });
    state->tls = std::move(tls);
  }
  state->socket = std::move(socket);
  return std::unique_ptr<Link>(new Link(std::move(state)));
}

Result<std::unique_ptr<Link>> Link::adopt(ScopedFd socket, const LinkOptions& options,
                                          std::span<const std::byte> already_read) {
  return adopt(std::move(socket), options, already_read, nullptr);
}
Result<std::unique_ptr<Link>> Link::adopt(ScopedFd socket, const LinkOptions& options,
                                          std::unique_ptr<TlsSession> tls) {
  return adopt(std::move(socket), options, {}, std::move(tls));
}

Link::Link(std::unique_ptr<State> state) : state_(std::move(state)) {}
Link::~Link() {
  REMUSD_ASSERT(!state_->in_wait, "a link is not destroyed from its own handler");
}

FrameWriter& Link::writer() {
  return state_->writer;
}
FrameReader& Link::reader() {
  return state_->reader;
}
size_t Link::send_space() const {
  return state_->space();
}
bool Link::drained() const {
  return state_->queued == 0 && (!state_->tls || state_->tls->pending() == 0);
}
uint64_t Link::sent_bytes_when_drained() const {
  const size_t kept = state_->tls ? state_->tls->pending() : 0;
  return state_->stats.sent_bytes + state_->queued + (kept > 0 ? kept + kTlsRecordOverhead : 0);
}
bool Link::secured() const {
  return state_->tls && state_->tls->established();
}
const std::string& Link::peer_node() const {
  static const std::string kNobody;
  return state_->tls ? state_->tls->peer_node() : kNobody;
}
bool Link::open() const {
  return state_->open;
}
const Status& Link::close_reason() const {
  return state_->reason;
}
const LinkStats& Link::stats() const {
  state_->stats.system_calls = state_->ring.system_calls();
  return state_->stats;
}
void Link::close(Status reason) {
  state_->close(std::move(reason));
}

Status Link::append(FrameType type, uint64_t epoch, std::span<const std::byte> body, uint64_t* checksum) {
  State& state = *state_;
  if (!state.open) return state.reason;
  const size_t frame_bytes = sizeof(FrameHeader) + body.size();
  if (frame_bytes > state.send_limit) {
    return {Code::invalid, "a frame of " + std::to_string(frame_bytes) +
                               " bytes does not fit the send queue of " + std::to_string(state.send_limit)};
  }
  state.reap();
  if (frame_bytes > send_space()) {
    ++state.stats.send_queue_full;
    return {Code::exhausted, "the send queue is full: the peer takes less than is sent"};
  }
  const FrameHeader header = state.writer.seal(type, epoch, body);
  if (state.tls) {
    state.encrypt(header, body);
  } else {
    state.enqueue(std::as_bytes(std::span(&header, 1)));
    state.enqueue(body);
  }
  ++state.stats.sent_frames;
  if (checksum != nullptr) *checksum = header.checksum;
  state.send_early();
  return {};
}

Status Link::wait(Time deadline, const std::function<Status(const FrameView&)>& on_frame) {
  State& state = *state_;
  REMUSD_ASSERT(!state.in_wait, "wait() is not called from its own handler");
  uint64_t delivered = 0;
  // Whether the socket was looked at since this call began. Our own progress must not end a wait before that:
  // a busy sender would never hear its peer, and take it for lost.
  bool looked = state.receiving;
  bool stirred = false;
  bool last_look = false;
  for (;;) {
    state.reap();
    state.in_wait = true;
    state.deliver(on_frame, &delivered);
    state.in_wait = false;
    if (!state.open) return state.reason;
    if (std::exchange(state.sent, false)) stirred = true;
    if (delivered > 0 || (stirred && looked) || last_look) {
      // Answers that the handler queued go out now, and the next receive with them, so that the next wait
      // need not look before it sleeps; everything else goes with that wait's one system call.
      state.prepare_send();
      if (state.ring.prepared()) {
        state.prepare_receive();
        if (Status status = state.ring.submit(); !status.ok()) state.close(std::move(status));
      }
      return state.open ? Status() : state.reason;
    }

    state.prepare_receive();
    state.prepare_send();
    state.prepare_wake();
    const Time now = Clock::now();
    last_look = deadline <= now;
    if (!state.rest_begins()) stirred = true;
    const Time until = std::min(deadline, state.own_deadline());
    const Duration sleep = last_look || stirred || until <= now
                               ? Duration::zero()
                               : std::min<Duration>(until - now, kLongestSleep);
    const Status status = state.ring.submit_and_wait(sleep);
    if (!state.rest_ends()) stirred = true;
    if (!status.ok()) {
      state.close(status);
      return state.reason;
    }
    looked = true;
  }
}

void Link::wake() {
  if (state_->rest.exchange(State::kWoken) != State::kAsleep) return;
  const uint64_t one = 1;
  // Fails only when 2^64 wake-ups wait: then one more is not missed.
  [[maybe_unused]] const ssize_t written = ::write(state_->wake_fd.get(), &one, sizeof one);
}

}  // namespace remusd::ckpt
