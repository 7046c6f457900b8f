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
#include "ckpt/link.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "ckpt/mapping.h"
#include "ckpt/ring.h"

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

Status broken(const std::string& when, int error) {
  return {Code::unavailable,
          Status::from_errno("the connection to the peer broke while " + when, error).message()};
}

}  // namespace

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
  Mapping receive;
  size_t begin = 0, end = 0;  // received and not yet delivered

  size_t sending = 0;  // bytes handed to the kernel, 0: none
  bool receiving = false, waking = false;
  bool sent = false;  // since wait() returned last
  bool in_wait = false;
  bool at_end = false;  // the peer will send no more
  int receive_error = 0, send_error = 0;

  Ring ring;  // last: gone before the buffers are

  ~State() { quiesce(); }

  void on_completion(uint64_t operation, int result);
  void reap() {
    ring.reap([this](uint64_t operation, int result) { on_completion(operation, result); });
  }
  void prepare_send();
  void prepare_receive();
  void prepare_wake();
  void deliver(const std::function<Status(const FrameView&)>& on_frame, uint64_t* delivered);
  void enqueue(std::span<const std::byte> bytes);
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

void Link::State::on_completion(uint64_t operation, int result) {
  switch (operation) {
    case kReceive:
      receiving = false;
      if (result > 0) {
        end += static_cast<size_t>(result);
        stats.received_bytes += static_cast<uint64_t>(result);
        REMUSD_ASSERT(end <= receive.size(), "the kernel was given what is free");
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
  if (sending > 0 || queued == 0 || send_error != 0) return;
  sending = std::min(queued, send.size() - head);
  io_uring_sqe* entry = ring.prepare();
  io_uring_prep_send(entry, socket.get(), send.data() + head, sending, MSG_NOSIGNAL);
  io_uring_sqe_set_data64(entry, kSend);
}

void Link::State::prepare_receive() {
  if (receiving || at_end || receive_error != 0) return;
  if (begin == end) {
    begin = end = 0;
  } else if (receive.size() - end < receive.size() / 2) {
    // At most one byte is moved for each byte received, and then a whole frame has room.
    std::memmove(receive.data(), receive.data() + begin, end - begin);
    end -= begin;
    begin = 0;
  }
  REMUSD_ASSERT(end < receive.size(), "what is held is less than one frame, and the buffer is more");
  receiving = true;
  io_uring_sqe* entry = ring.prepare();
  io_uring_prep_recv(entry, socket.get(), receive.data() + end, receive.size() - end, 0);
  io_uring_sqe_set_data64(entry, kReceive);
}

void Link::State::prepare_wake() {
  if (waking) return;
  waking = true;
  io_uring_sqe* entry = ring.prepare();
  io_uring_prep_read(entry, wake_fd.get(), &wake_count, sizeof wake_count, 0);
  io_uring_sqe_set_data64(entry, kWake);
}

void Link::State::deliver(const std::function<Status(const FrameView&)>& on_frame, uint64_t* delivered) {
  while (open) {
    FrameView frame;
    size_t consumed = 0;
    if (Status status = reader.next({receive.data() + begin, end - begin}, &frame, &consumed); !status.ok())
      return close(std::move(status));
    if (consumed == 0) break;
    begin += consumed;
    ++stats.received_frames;
    ++*delivered;
    if (Status status = on_frame(frame); !status.ok()) return close(std::move(status));
  }
  if (!open) return;
  if (send_error != 0 && (at_end || receive_error != 0)) return close(broken("sending", send_error));
  if (receive_error != 0) return close(broken("receiving", receive_error));
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
                                          std::span<const std::byte> already_read) {
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
  REMUSD_ASSIGN(state->send, Mapping::anonymous(options.send_queue_bytes, /*populate=*/false));
  REMUSD_ASSIGN(state->receive, Mapping::anonymous(options.receive_buffer_bytes, /*populate=*/false));
  REMUSD_TRY(state->ring.open(kRingEntries));
  if (!already_read.empty()) std::memcpy(state->receive.data(), already_read.data(), already_read.size());
  state->end = already_read.size();
  state->stats.received_bytes = already_read.size();
  state->socket = std::move(socket);
  return std::unique_ptr<Link>(new Link(std::move(state)));
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
  return state_->open ? state_->send.size() - state_->queued : 0;
}
bool Link::drained() const {
  return state_->queued == 0;
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
  if (frame_bytes > state.send.size()) {
    return {Code::invalid, "a frame of " + std::to_string(frame_bytes) +
                               " bytes does not fit the send queue of " + std::to_string(state.send.size())};
  }
  state.reap();
  if (frame_bytes > send_space()) {
    ++state.stats.send_queue_full;
    return {Code::exhausted, "the send queue is full: the peer takes less than is sent"};
  }
  const FrameHeader header = state.writer.seal(type, epoch, body);
  state.enqueue(std::as_bytes(std::span(&header, 1)));
  state.enqueue(body);
  ++state.stats.sent_frames;
  if (checksum != nullptr) *checksum = header.checksum;
  if (state.sending == 0 && state.queued >= kEagerSendBytes) {
    state.prepare_send();
    // The frame is queued whatever happens here: a failure of the ring shows in the next wait().
    (void)state.ring.submit();
  }
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
    const Duration sleep =
        last_look || stirred ? Duration::zero() : std::min<Duration>(deadline - now, kLongestSleep);
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
