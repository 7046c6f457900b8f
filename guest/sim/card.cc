// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/sim/card.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

namespace remusd::guest::sim {
namespace {

constexpr size_t kLengthBytes = sizeof(uint32_t);

}  // namespace

Result<std::unique_ptr<Card>> Card::listen(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return Status(Code::invalid, "runtime_dir: socket path '" + path + "' is longer than the " +
                                     std::to_string(sizeof address.sun_path - 1) + " bytes allowed");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  ScopedFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return Status::from_errno("make a socket for a simulated network card");
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Status::from_errno("bind " + path);
  }
  auto card = std::make_unique<Card>(path, std::move(listener));
  if (::listen(card->listener_.get(), 1) != 0) return Status::from_errno("listen on " + path);
  return card;
}

Card::Card(std::string path, ScopedFd listener)
    : path_(std::move(path)), listener_(std::move(listener)), received_(kLengthBytes + kMaxFrameBytes) {
  rest_.reserve(kLengthBytes + kMaxFrameBytes);
}

Card::~Card() {
  ::unlink(path_.c_str());
}

pollfd Card::wanted() const {
  if (!peer_) return {listener_.get(), POLLIN, 0};
  const int events = (stuck_ ? 0 : POLLIN) | (rest_.empty() ? 0 : POLLOUT);
  // A descriptor that nothing is wanted of must not wake the thread, not even for POLLHUP.
  return {events == 0 ? -1 : peer_.get(), static_cast<short>(events), 0};
}

void Card::disconnect() {
  peer_.reset();
  received_size_ = 0;
  stuck_ = false;
  rest_.clear();
}

void Card::service(const std::function<bool(std::span<const std::byte>)>& deliver) {
  if (!peer_) peer_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!peer_) return;
  flush_rest();
  while (peer_ && hand_over(deliver) && peer_ && read_some()) {
  }
}

bool Card::hand_over(const std::function<bool(std::span<const std::byte>)>& deliver) {
  stuck_ = false;
  size_t at = 0;
  while (received_size_ - at >= kLengthBytes) {
    uint32_t length = 0;
    std::memcpy(&length, received_.data() + at, kLengthBytes);
    length = ntohl(length);
    if (length == 0 || length > kMaxFrameBytes) {
      disconnect();
      return false;
    }
    if (received_size_ - at < kLengthBytes + length) break;
    if (!deliver({received_.data() + at + kLengthBytes, length})) {
      stuck_ = true;
      break;
    }
    at += kLengthBytes + length;
  }
  std::memmove(received_.data(), received_.data() + at, received_size_ - at);
  received_size_ -= at;
  return !stuck_;
}

bool Card::read_some() {
  const ssize_t got =
      ::recv(peer_.get(), received_.data() + received_size_, received_.size() - received_size_, MSG_DONTWAIT);
  if (got > 0) {
    received_size_ += static_cast<size_t>(got);
    return true;
  }
  if (got == 0 || (errno != EAGAIN && errno != EINTR)) disconnect();
  return false;
}

void Card::flush_rest() {
  if (!peer_ || rest_.empty()) return;
  const ssize_t sent = ::send(peer_.get(), rest_.data(), rest_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (sent > 0) rest_.erase(rest_.begin(), rest_.begin() + sent);
  if (sent < 0 && errno != EAGAIN && errno != EINTR) disconnect();
}

bool Card::send(std::span<const std::byte> frame) {
  REMUSD_ASSERT(!frame.empty() && frame.size() <= kMaxFrameBytes, "a frame has a length");
  flush_rest();
  if (!peer_) return true;
  if (!rest_.empty()) return false;
  const uint32_t length = htonl(static_cast<uint32_t>(frame.size()));
  rest_.resize(kLengthBytes + frame.size());
  std::memcpy(rest_.data(), &length, kLengthBytes);
  std::memcpy(rest_.data() + kLengthBytes, frame.data(), frame.size());
  const size_t whole = rest_.size();
  flush_rest();
  if (rest_.size() < whole) return true;
  rest_.clear();
  return false;
}

}  // namespace remusd::guest::sim
