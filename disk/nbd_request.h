// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Requests of NBD's transmission phase, checked whole, and the heads of replies to them. Pure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "disk/nbd_protocol.h"

namespace remusd::disk::nbd {

struct Request {
  Command command = Command::read;
  uint16_t flags = 0;
  uint64_t cookie = 0, offset = 0;
  uint32_t bytes = 0;

  bool has(uint16_t flag) const { return (flags & flag) != 0; }
  /// What follows it on the wire, whether or not it is refused.
  size_t payload_bytes() const { return command == Command::write ? bytes : 0; }
  bool changes() const {
    return command == Command::write || command == Command::trim || command == Command::write_zeroes;
  }
  uint64_t end() const { return offset + bytes; }
};

/// Of the connection that a request came on.
struct Terms {
  uint64_t bytes = 0;
  bool read_only = false;
  bool structured = false, allocation = false;  // as agreed on
};

/// REQUIRES: sizeof(RequestHead) bytes. nullopt: these bytes are no request, or a write that brings more than
/// kMaxPayload, and what comes after them cannot be made sense of. `command` may be one that nobody knows.
std::optional<Request> parse(std::span<const std::byte> head);

/// `none`, or why it is refused. One that passes lies within the disk, is at least one byte long where it has
/// a length, and has only flags that its command knows.
Error check(const Request& request, const Terms& terms);

/// What a system call's errno value is called on the wire.
Error error_of(int number);

/// The head of a reply, built where it is sent from.
class ReplyHead {
 public:
  std::span<const std::byte> bytes() const { return std::span(bytes_).first(size_); }

  /// Of a request that is answered with success or an error and nothing else.
  static ReplyHead plain(const Request& request, const Terms& terms, Error error);
  /// Of a read; all of its bytes follow.
  static ReplyHead data(const Request& request, const Terms& terms);
  /// Of a block status; so many extents follow.
  static ReplyHead extents(const Request& request, size_t count);

 private:
  template <typename... Parts>
  static ReplyHead of(const Parts&... parts);

  std::array<std::byte, 28> bytes_{};
  uint8_t size_ = 0;
};

}  // namespace remusd::disk::nbd
