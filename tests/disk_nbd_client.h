// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A small NBD client over a unix socket, for tests: it sends what it is told, also what is wrong, and takes
// answers one by one.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ckpt/scoped_fd.h"
#include "disk/nbd_negotiation.h"
#include "disk/nbd_request.h"
#include "tests/patience.h"

namespace remusd::disk {

using ckpt::Bytes;

inline Bytes filled(size_t size, unsigned value) {
  return Bytes(size, std::byte(value));
}

class NbdClient {
 public:
  struct Answer {
    uint64_t cookie = 0;
    nbd::Error error = nbd::Error::none;
    Bytes content;
  };

  explicit NbdClient(const std::string& path) : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    const timeval patience{std::chrono::duration_cast<std::chrono::seconds>(kPatience).count(), 0};
    ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    EXPECT_EQ(::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0)
        << path << ": " << strerror(errno);
  }

  int fd() const { return socket_.get(); }
  void close() { socket_.reset(); }

  bool send(const void* data, size_t size) {
    const auto* bytes = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t put = ::send(socket_.get(), bytes, size, MSG_NOSIGNAL);
      if (put <= 0) return false;
      bytes += put;
      size -= static_cast<size_t>(put);
    }
    return true;
  }
  /// Short when the server closes.
  Bytes receive(size_t size) {
    Bytes bytes(size);
    size_t got = 0;
    while (got < size) {
      const ssize_t now = ::recv(socket_.get(), bytes.data() + got, size - got, 0);
      if (now <= 0) break;
      got += static_cast<size_t>(now);
    }
    bytes.resize(got);
    return bytes;
  }
  bool closed() { return receive(1).empty(); }
  template <typename T>
  T take() {
    const Bytes bytes = receive(sizeof(T));
    EXPECT_EQ(bytes.size(), sizeof(T)) << "the server ended the connection";
    return bytes.size() == sizeof(T) ? nbd::get<T>(bytes) : T{};
  }

  /// The whole handshake. False when the server refuses.
  bool enter(std::string_view name = "", bool structured = false) {
    terms_.structured = terms_.allocation = structured;
    const auto greeting = take<nbd::Greeting>();
    EXPECT_EQ(greeting.magic, nbd::kGreetingMagic);
    Bytes said;
    nbd::put(nbd::Big<uint32_t>(nbd::kFixedNewstyle | nbd::kNoZeroes), &said);
    if (structured) {
      option(nbd::Option::structured_reply, {}, &said);
      Bytes context = text(name);
      nbd::put(nbd::Big<uint32_t>(1), &context);
      const Bytes query = text(nbd::kAllocationContext);
      context.insert(context.end(), query.begin(), query.end());
      option(nbd::Option::set_meta_context, context, &said);
    }
    Bytes go = text(name);
    nbd::put(nbd::Big<uint16_t>(0), &go);
    option(nbd::Option::go, go, &said);
    if (!send(said.data(), said.size())) return false;
    for (;;) {
      const auto head = take<nbd::OptionReplyHead>();
      if (head.magic != nbd::kOptionReplyMagic) return false;
      const Bytes data = receive(head.bytes);
      if ((head.type & nbd::kReplyError) != 0) return false;
      if (head.type == static_cast<uint32_t>(nbd::OptionReply::info) &&
          data.size() == sizeof(nbd::InfoExport))
        terms_.bytes = nbd::get<nbd::InfoExport>(data).bytes;
      if (head.option == static_cast<uint32_t>(nbd::Option::go) &&
          head.type == static_cast<uint32_t>(nbd::OptionReply::ack))
        return true;
    }
  }
  uint64_t bytes() const { return terms_.bytes; }

  void ask(nbd::Command command, uint64_t cookie, uint64_t offset, uint32_t bytes, uint16_t flags = 0) {
    nbd::RequestHead head;
    head.flags = flags;
    head.type = static_cast<uint16_t>(command);
    head.cookie = cookie;
    head.offset = offset;
    head.bytes = bytes;
    EXPECT_TRUE(send(&head, sizeof head));
    asked_.emplace_back(cookie, nbd::Request{command, flags, cookie, offset, bytes});
  }
  void write(uint64_t cookie, uint64_t offset, const Bytes& data, uint16_t flags = 0) {
    ask(nbd::Command::write, cookie, offset, static_cast<uint32_t>(data.size()), flags);
    EXPECT_TRUE(send(data.data(), data.size()));
  }

  /// The next answer, to whatever was asked.
  Answer answer() {
    Answer answer;
    const auto magic = take<nbd::Big<uint32_t>>();
    if (magic == nbd::kSimpleReplyMagic) {
      answer.error = static_cast<nbd::Error>(uint32_t{take<nbd::Big<uint32_t>>()});
      answer.cookie = take<nbd::Big<uint64_t>>();
      const nbd::Request request = asked(answer.cookie);
      if (request.command == nbd::Command::read && answer.error == nbd::Error::none)
        answer.content = receive(request.bytes);
      return answer;
    }
    EXPECT_EQ(magic, nbd::kChunkMagic);
    EXPECT_EQ(take<nbd::Big<uint16_t>>(), nbd::kChunkDone);
    const auto type = static_cast<nbd::Chunk>(uint16_t{take<nbd::Big<uint16_t>>()});
    answer.cookie = take<nbd::Big<uint64_t>>();
    asked(answer.cookie);
    answer.content = receive(take<nbd::Big<uint32_t>>());
    if (type == nbd::Chunk::error)
      answer.error = static_cast<nbd::Error>(uint32_t{nbd::get<nbd::Big<uint32_t>>(answer.content)});
    // Content is behind the offset of a read, and behind the number of a status' context.
    const ptrdiff_t before = type == nbd::Chunk::offset_data ? 8 : 4;
    answer.content.erase(answer.content.begin(), answer.content.begin() + before);
    return answer;
  }
  /// Asks and takes the answer, which must be to this.
  Answer ask_now(nbd::Command command, uint64_t offset, uint32_t bytes, uint16_t flags = 0) {
    ask(command, ++cookies_, offset, bytes, flags);
    return answer_to(cookies_);
  }
  nbd::Error write_now(uint64_t offset, const Bytes& data, uint16_t flags = 0) {
    write(++cookies_, offset, data, flags);
    return answer_to(cookies_).error;
  }
  Bytes read_now(uint64_t offset, uint32_t bytes) {
    return ask_now(nbd::Command::read, offset, bytes).content;
  }

  static Bytes text(std::string_view words) {
    Bytes bytes;
    nbd::put(nbd::Big<uint32_t>(static_cast<uint32_t>(words.size())), &bytes);
    const auto view = std::as_bytes(std::span(words));
    bytes.insert(bytes.end(), view.begin(), view.end());
    return bytes;
  }
  static void option(nbd::Option option, const Bytes& data, Bytes* out) {
    nbd::OptionHead head;
    head.option = static_cast<uint32_t>(option);
    head.bytes = static_cast<uint32_t>(data.size());
    nbd::put(head, out);
    out->insert(out->end(), data.begin(), data.end());
  }

 private:
  Answer answer_to(uint64_t cookie) {
    Answer got = answer();
    EXPECT_EQ(got.cookie, cookie);
    return got;
  }
  nbd::Request asked(uint64_t cookie) {
    for (auto at = asked_.begin(); at != asked_.end(); ++at) {
      if (at->first != cookie) continue;
      const nbd::Request request = at->second;
      asked_.erase(at);
      return request;
    }
    ADD_FAILURE() << "an answer to what was not asked: " << cookie;
    return {};
  }

  ScopedFd socket_;
  nbd::Terms terms_;
  uint64_t cookies_ = 1000000;
  std::vector<std::pair<uint64_t, nbd::Request>> asked_;
};

}  // namespace remusd::disk
