// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The NBD protocol as far as it is spoken here: numbers, and structs as they lie on the wire. The source is
// the protocol's own document, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; names are
// its own. Everything is big-endian.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace remusd::disk::nbd {

/// A number as it lies on the wire. Its alignment is 1, so that structs of it have no holes.
template <std::unsigned_integral T>
requires(sizeof(T) > 1) class Big {
 public:
  Big() = default;
  Big(T value) { *this = value; }  // NOLINT(google-explicit-constructor)
  Big& operator=(T value) {
    for (size_t i = sizeof(T); i-- > 0; value = static_cast<T>(value >> 8))
      bytes_[i] = static_cast<std::byte>(value & 0xff);
    return *this;
  }
  operator T() const {  // NOLINT(google-explicit-constructor)
    T value = 0;
    for (const std::byte byte : bytes_) value = static_cast<T>(uint64_t{value} << 8 | uint64_t(byte));
    return value;
  }

 private:
  std::array<std::byte, sizeof(T)> bytes_{};
};

/// REQUIRES: bytes holds that many.
template <typename T>
T get(std::span<const std::byte> bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}
template <typename T>
void put(const T& value, std::vector<std::byte>* out) {
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out->insert(out->end(), bytes.begin(), bytes.end());
}

// ---- Handshake

inline constexpr uint64_t kGreetingMagic = 0x4e42444d41474943, kOptionMagic = 0x49484156454f5054,
                          kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr uint16_t kFixedNewstyle = 1 << 0, kNoZeroes = 1 << 1;  // both sides' handshake flags
inline constexpr size_t kMaxStringBytes = 4096, kExportNameZeroes = 124;

enum class Option : uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
};

inline constexpr uint32_t kReplyError = 1u << 31;
enum class OptionReply : uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  unsupported = kReplyError + 1,
  policy = kReplyError + 2,
  invalid = kReplyError + 3,
  unknown = kReplyError + 6,  // export
  too_big = kReplyError + 9,
};

enum class Info : uint16_t { export_ = 0, name = 1, description = 2, block_size = 3 };

struct Greeting {
  Big<uint64_t> magic = kGreetingMagic, option_magic = kOptionMagic;
  Big<uint16_t> flags;
};
struct OptionHead {
  Big<uint64_t> magic = kOptionMagic;
  Big<uint32_t> option, bytes;
};
struct OptionReplyHead {
  Big<uint64_t> magic = kOptionReplyMagic;
  Big<uint32_t> option, type, bytes;
};
struct InfoExport {
  Big<uint16_t> type;
  Big<uint64_t> bytes;
  Big<uint16_t> flags;
};
struct InfoBlockSize {
  Big<uint16_t> type;
  Big<uint32_t> minimum, preferred, maximum;
};
static_assert(sizeof(Greeting) == 18 && sizeof(OptionHead) == 16 && sizeof(OptionReplyHead) == 20);
static_assert(sizeof(InfoExport) == 12 && sizeof(InfoBlockSize) == 14);

// ---- Transmission

inline constexpr uint32_t kRequestMagic = 0x25609513, kSimpleReplyMagic = 0x67446698,
                          kChunkMagic = 0x668e33ef;
inline constexpr uint32_t kMinBlock = 1, kPreferredBlock = 4096, kMaxPayload = 32u << 20;

// Flags of an export.
inline constexpr uint16_t kHasFlags = 1 << 0, kReadOnly = 1 << 1, kSendFlush = 1 << 2, kSendFua = 1 << 3,
                          kSendTrim = 1 << 5, kSendWriteZeroes = 1 << 6, kSendDf = 1 << 7,
                          kCanMultiConn = 1 << 8, kSendCache = 1 << 10;

enum class Command : uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

// Flags of a request.
inline constexpr uint16_t kFua = 1 << 0, kNoHole = 1 << 1, kDf = 1 << 2, kReqOne = 1 << 3;

/// Values on the wire are those of Linux.
enum class Error : uint32_t { none = 0, perm = 1, io = 5, nomem = 12, inval = 22, nospc = 28, notsup = 95 };

enum class Chunk : uint16_t { none = 0, offset_data = 1, block_status = 5, error = (1 << 15) + 1 };
inline constexpr uint16_t kChunkDone = 1 << 0;
inline constexpr uint32_t kStateHole = 1 << 0, kStateZero = 1 << 1;  // of base:allocation

struct RequestHead {
  Big<uint32_t> magic = kRequestMagic;
  Big<uint16_t> flags, type;
  Big<uint64_t> cookie, offset;
  Big<uint32_t> bytes;
};
struct SimpleReply {
  Big<uint32_t> magic = kSimpleReplyMagic, error;
  Big<uint64_t> cookie;
};
struct ChunkHead {
  Big<uint32_t> magic = kChunkMagic;
  Big<uint16_t> flags, type;
  Big<uint64_t> cookie;
  Big<uint32_t> bytes;
};
struct Extent {
  Big<uint32_t> bytes, state;
};
static_assert(sizeof(RequestHead) == 28 && sizeof(SimpleReply) == 16 && sizeof(ChunkHead) == 20);
static_assert(sizeof(Extent) == 8);

}  // namespace remusd::disk::nbd
