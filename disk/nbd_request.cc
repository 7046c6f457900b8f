// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/nbd_request.h"

#include <cerrno>

#include "ckpt/status.h"
#include "disk/nbd_negotiation.h"

namespace remusd::disk::nbd {
namespace {

/// Flags that a command knows; nullopt: nobody knows the command. FUA is allowed on each of them, and says
/// nothing where nothing is written.
std::optional<uint16_t> flags_of(Command command, const Terms& terms) {
  switch (command) {
    case Command::read:
      return static_cast<uint16_t>(kFua | (terms.structured ? kDf : 0));
    case Command::write:
    case Command::flush:
    case Command::trim:
    case Command::cache:
      return kFua;
    case Command::write_zeroes:
      return static_cast<uint16_t>(kFua | kNoHole);
    case Command::block_status:
      return static_cast<uint16_t>(kFua | kReqOne);
    case Command::disconnect:
      return uint16_t{0};
  }
  return std::nullopt;
}

ChunkHead chunk(const Request& request, Chunk type, size_t bytes) {
  ChunkHead head;
  head.flags = kChunkDone;  // Each reply is one chunk.
  head.type = static_cast<uint16_t>(type);
  head.cookie = request.cookie;
  head.bytes = static_cast<uint32_t>(bytes);
  return head;
}

SimpleReply simple(const Request& request, Error error) {
  SimpleReply reply;
  reply.error = static_cast<uint32_t>(error);
  reply.cookie = request.cookie;
  return reply;
}

}  // namespace

std::optional<Request> parse(std::span<const std::byte> bytes) {
  const auto head = get<RequestHead>(bytes);
  Request request{static_cast<Command>(uint16_t{head.type}), head.flags, head.cookie, head.offset,
                  head.bytes};
  if (head.magic != kRequestMagic || request.payload_bytes() > kMaxPayload) return std::nullopt;
  return request;
}

Error check(const Request& request, const Terms& terms) {
  const auto flags = flags_of(request.command, terms);
  if (!flags || (request.flags & ~*flags) != 0) return Error::inval;
  if (request.command == Command::disconnect) return Error::none;
  if (request.command == Command::flush)
    return request.offset == 0 && request.bytes == 0 ? Error::none : Error::inval;
  if (request.changes() && terms.read_only) return Error::perm;
  if (request.bytes == 0) return Error::inval;
  if (request.command == Command::read && request.bytes > kMaxPayload) return Error::inval;
  if (request.command == Command::block_status && !terms.allocation) return Error::inval;
  if (request.offset > terms.bytes || request.bytes > terms.bytes - request.offset) {
    const bool grows = request.command == Command::write || request.command == Command::write_zeroes;
    return grows ? Error::nospc : Error::inval;
  }
  return Error::none;
}

Error error_of(int number) {
  switch (number) {
    case 0:
      return Error::none;
    case EPERM:
    case EROFS:
      return Error::perm;
    case ENOMEM:
      return Error::nomem;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Error::nospc;
    default:
      return Error::io;
  }
}

template <typename... Parts>
ReplyHead ReplyHead::of(const Parts&... parts) {
  static_assert((sizeof(Parts) + ...) <= sizeof bytes_);
  ReplyHead head;
  const auto add = [&head](const auto& part) {
    std::memcpy(head.bytes_.data() + head.size_, &part, sizeof part);
    head.size_ = static_cast<uint8_t>(head.size_ + sizeof part);
  };
  (add(parts), ...);
  return head;
}

ReplyHead ReplyHead::plain(const Request& request, const Terms& terms, Error error) {
  // With structured replies agreed on, what answers with content when it succeeds must fail in a chunk.
  const bool content = request.command == Command::read || request.command == Command::block_status;
  if (!terms.structured || !content) return of(simple(request, error));
  REMUSD_ASSERT(error != Error::none, "content that came is not answered by its head alone");
  const Big<uint32_t> number(static_cast<uint32_t>(error));
  const Big<uint16_t> text_bytes(0);
  return of(chunk(request, Chunk::error, sizeof number + sizeof text_bytes), number, text_bytes);
}

ReplyHead ReplyHead::data(const Request& request, const Terms& terms) {
  if (!terms.structured) return of(simple(request, Error::none));
  const Big<uint64_t> offset(request.offset);
  return of(chunk(request, Chunk::offset_data, sizeof offset + request.bytes), offset);
}

ReplyHead ReplyHead::extents(const Request& request, size_t count) {
  const Big<uint32_t> context(kAllocationId);
  return of(chunk(request, Chunk::block_status, sizeof context + count * sizeof(Extent)), context);
}

}  // namespace remusd::disk::nbd
