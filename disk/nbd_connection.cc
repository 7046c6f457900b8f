// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/nbd_connection.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "disk/drive.h"

namespace remusd::disk {
namespace {

/// Holds an option whole, and dozens of small writes with what they bring.
constexpr size_t kBufferBytes = 128 << 10;
static_assert(kBufferBytes > nbd::kMaxOptionBytes + sizeof(nbd::OptionHead));
/// So much content that is missing is received in its place by one operation, and nothing behind it: what
/// belongs to the next write would be copied once more.
constexpr size_t kLargeContent = 64 << 10;
/// What leaves together; its memory is free only when all of it has.
constexpr size_t kGatheredAnswers = 64, kGatheredBytes = 1 << 20;
/// A large answer is taken by the socket at once.
constexpr int kSendBuffer = 512 << 10;

iovec piece(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

}  // namespace

Connection::Connection(ScopedFd socket, Drive* drive, DiskTally* tally, const nbd::Export& served,
                       size_t most_jobs, OperationRing* ring, Owner* owner)
    : socket_(std::move(socket)),
      drive_(drive),
      tally_(tally),
      ring_(ring),
      owner_(owner),
      negotiation_(served),
      terms_{served.bytes, served.read_only},
      most_jobs_(most_jobs),
      buffer_(kBufferBytes) {
  if (::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kSendBuffer, sizeof kSendBuffer) != 0)
    (void)::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDBUF, &kSendBuffer, sizeof kSendBuffer);
  tally_->connections.fetch_add(1, std::memory_order_relaxed);
  nbd::Negotiation::greet(&said_);
  owner_->touched(this);
}

Connection::~Connection() {
  tally_->connections.fetch_sub(1, std::memory_order_relaxed);
}

void Connection::end() {
  fail();
  owner_->touched(this);
}

void Connection::fail() {
  closing_ = broken_ = true;
  ::shutdown(socket_.get(), SHUT_RDWR);  // What is under way ends.
}

void Connection::settle() {
  for (;;) {
    // Large answers leave before more is read: they are in the processor's cache still.
    bool taken = true;
    while (!closing_ && !receiving_ && taken && !answers_first()) taken = take_one();
    if (!sending_) send();
    if (closing_ || receiving_ || sending_) break;
    // What has left makes room on this connection for requests that were received already.
    if (!taken && (!full_ || jobs_ == most_jobs_)) break;
  }
  if (closing_) {
    if (incoming_ != nullptr && !receiving_) drop(std::exchange(incoming_, nullptr));
  } else if (!receiving_ && !full_ && !waits_for_room && !answers_first()) {
    receive();
  }
}

/// Nothing is taken or received before more has left.
bool Connection::answers_first() const {
  return unsent_bytes_ >= kGatheredBytes || pages_.bytes() > 0;
}

// ---- Requests

void Connection::receive() {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, buffered());
    end_ -= std::exchange(begin_, 0);
  }
  size_t count = 0, behind = buffer_.size() - end_;
  if (incoming_ != nullptr) {
    const size_t missing = incoming_->request.bytes - incoming_->done;
    into_[count++] = {incoming_->content.data() + incoming_->done, missing};
    if (missing >= kLargeContent) behind = 0;
  }
  if (behind > 0) into_[count++] = {buffer_.data() + end_, behind};
  receive_.msg_iov = into_.data();
  receive_.msg_iovlen = count;
  receiving_ = true;
  const unsigned flags = behind == 0 ? MSG_WAITALL : 0;
  ring_->start(&receive_operation_,
               [&](io_uring_sqe* entry) { io_uring_prep_recvmsg(entry, socket_.get(), &receive_, flags); });
}

void Connection::received(int result) {
  receiving_ = false;
  owner_->touched(this);
  if (result == -EINTR || result == -EAGAIN) return;
  if (result <= 0) {
    closing_ = true;
    if (result < 0) fail();
    return;
  }
  auto got = static_cast<size_t>(result);
  if (incoming_ != nullptr) {
    const size_t content = std::min<size_t>(got, incoming_->request.bytes - incoming_->done);
    incoming_->done += static_cast<uint32_t>(content);
    got -= content;
  }
  end_ += got;
}

bool Connection::take_one() {
  using State = nbd::Negotiation::State;
  if (negotiation_.state() != State::transmission) {
    begin_ += negotiation_.take(buffer(), &said_);
    if (negotiation_.state() == State::ended) closing_ = true;
    if (negotiation_.state() != State::transmission) return false;
    terms_.structured = negotiation_.structured();
    terms_.allocation = negotiation_.allocation();
  }
  if (passing_over_ > 0) {
    const size_t now = std::min(passing_over_, buffered());
    passing_over_ -= now;
    begin_ += now;
    if (passing_over_ > 0) return false;
  }
  return incoming_ != nullptr ? take_content() : begin_request();
}

bool Connection::take_content() {
  const size_t now = std::min<size_t>(buffered(), incoming_->request.bytes - incoming_->done);
  std::memcpy(incoming_->content.data() + incoming_->done, buffer().data(), now);
  begin_ += now;
  incoming_->done += static_cast<uint32_t>(now);
  if (incoming_->done < incoming_->request.bytes) return false;
  Job* whole = std::exchange(incoming_, nullptr);
  whole->done = 0;
  owner_->carry_out(whole);
  return true;
}

bool Connection::begin_request() {
  full_ = false;
  if (buffered() < sizeof(nbd::RequestHead) || waits_for_room) return false;
  const auto request = nbd::parse(buffer());
  if (!request || request->command == nbd::Command::disconnect) {
    closing_ = true;
    return false;
  }
  full_ = jobs_ == most_jobs_;
  if (full_) return false;
  const nbd::Error error = nbd::check(*request, terms_);
  size_t content = 0;
  if (error == nbd::Error::none) {
    using nbd::Command;
    if (request->command == Command::write || request->command == Command::read) content = request->bytes;
    if (request->command == Command::block_status) content = Drive::kMaxExtents * sizeof(nbd::Extent);
  }
  Job* job = owner_->admit(this, *request, content);
  if (job == nullptr) return false;
  ++jobs_;
  begin_ += sizeof(nbd::RequestHead);
  if (error != nbd::Error::none) {
    passing_over_ = request->payload_bytes();
    owner_->refuse(job, error);
  } else if (request->payload_bytes() > 0) {
    incoming_ = job;
  } else {
    owner_->carry_out(job);
  }
  return true;
}

// ---- Answers

void Connection::answer(Job* job, nbd::Error error) {
  using nbd::Command;
  const nbd::Request& request = job->request;
  if (error != nbd::Error::none) {
    job->reply_bytes = 0;
    job->head = nbd::ReplyHead::plain(request, terms_, error);
  } else if (request.command == Command::read) {
    job->reply_bytes = request.bytes;
    job->head = nbd::ReplyHead::data(request, terms_);
  } else if (request.command == Command::block_status) {
    job->head = nbd::ReplyHead::extents(request, job->reply_bytes / sizeof(nbd::Extent));
  } else {
    job->head = nbd::ReplyHead::plain(request, terms_, error);
  }
  unsent_bytes_ += job->reply_bytes;
  answers_.push_back(job);
  owner_->touched(this);
}

void Connection::drop(Job* job) {
  --jobs_;
  owner_->release(job);
  owner_->touched(this);
}

void Connection::send() {
  while (!broken_ && (out_first_ < out_.size() || leaving_ > 0 || gather())) {
    // Mostly the socket has room, and then this is all. What it has no room for waits in the ring.
    const ssize_t put = send_now();
    if (put > 0) {
      advance(static_cast<size_t>(put));
    } else if (put < 0 && errno == EAGAIN) {
      return send_later();
    } else if (put == 0 || errno != EINTR) {
      fail();
    }
  }
  if (broken_) drop_answers();
}

ssize_t Connection::send_now() {
  if (sends_pages()) return pages_.move_to(socket_.get());
  send_.msg_iov = out_.data() + out_first_;
  send_.msg_iovlen = out_.size() - out_first_;
  return ::sendmsg(socket_.get(), &send_, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void Connection::send_later() {
  sending_ = true;
  ring_->start(&send_operation_, [&](io_uring_sqe* entry) {
    if (sends_pages())
      io_uring_prep_poll_add(entry, socket_.get(), POLLOUT);
    else
      io_uring_prep_sendmsg(entry, socket_.get(), &send_, MSG_NOSIGNAL | MSG_WAITALL);
  });
}

void Connection::sent(int result) {
  sending_ = false;
  owner_->touched(this);
  if (result == -EINTR || result == -EAGAIN) return;
  if (result <= 0) return fail();
  if (!sends_pages()) advance(static_cast<size_t>(result));  // else there is room for them
}

bool Connection::gather() {
  out_.clear();
  out_first_ = 0;
  if (!said_.empty()) {
    saying_.swap(said_);
    said_.clear();
    out_.push_back(piece(saying_));
  }
  size_t bytes = 0;
  for (leaving_ = 0; leaving_ < answers_.size() && leaving_ < kGatheredAnswers && bytes < kGatheredBytes;
       ++leaving_) {
    const Job& job = *answers_[leaving_];
    out_.push_back(piece(job.head.bytes()));
    if (job.in_pipe) {  // It follows what is gathered.
      ++leaving_;
      break;
    }
    if (job.reply_bytes > 0) out_.push_back({job.content.data(), job.reply_bytes});
    bytes += job.reply_bytes;
  }
  return !out_.empty();
}

/// `bytes` more have left, of `out_` or, behind it, of `pages_`.
void Connection::advance(size_t bytes) {
  while (bytes > 0 && out_first_ < out_.size()) {
    iovec& first = out_[out_first_];
    const size_t now = std::min(bytes, first.iov_len);
    first = {static_cast<std::byte*>(first.iov_base) + now, first.iov_len - now};
    bytes -= now;
    if (first.iov_len == 0) ++out_first_;
  }
  if (out_first_ < out_.size() || (leaving_ > 0 && answers_[leaving_ - 1]->in_pipe && pages_.bytes() > 0))
    return;
  for (size_t i = 0; i < leaving_; ++i) {
    unsent_bytes_ -= answers_[i]->reply_bytes;
    drop(answers_[i]);
  }
  answers_.erase(answers_.begin(), answers_.begin() + static_cast<ptrdiff_t>(leaving_));
  leaving_ = 0;
}

void Connection::drop_answers() {
  for (Job* job : answers_) drop(job);
  answers_.clear();
  out_.clear();
  said_.clear();
  out_first_ = leaving_ = unsent_bytes_ = 0;
}

}  // namespace remusd::disk
