// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Bytes to frames and back, with every check that needs no knowledge of a body: magic, flags, length,
// sequence, generation, checksum. One FrameWriter and one FrameReader for each direction of a connection.
// Not thread-safe: both belong to the thread that owns the connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ckpt/format.h"
#include "ckpt/status.h"

namespace remusd::ckpt {

/// A checked frame whose body lies in the caller's buffer.
struct FrameView {
  FrameHeader header;
  std::span<const std::byte> body;
  FrameType type() const { return static_cast<FrameType>(header.type); }
  bool optional() const { return (header.type & kOptionalBit) != 0; }
};

/// Numbers and seals outgoing frames.
class FrameWriter {
 public:
  void set_generation(uint64_t generation) { generation_ = generation; }
  uint64_t generation() const { return generation_; }

  /// Appends a frame to *out. REQUIRES: body.size() <= kMaxBodyBytes. Returns the frame's checksum.
  uint64_t append(FrameType type, uint64_t epoch, std::span<const std::byte> body,
                  std::vector<std::byte>* out);
  /// For a body that is built in place: reserves a header at the end of *out and returns its offset; the
  /// caller appends the body; finish() writes the header.
  size_t begin(std::vector<std::byte>* out);
  uint64_t finish(size_t offset, FrameType type, uint64_t epoch, std::vector<std::byte>* out);
  /// The header for a body that stays where it is; the caller sends header and body one after the other.
  FrameHeader seal(FrameType type, uint64_t epoch, std::span<const std::byte> body);

 private:
  FrameHeader next_header(FrameType type, uint64_t epoch, size_t body_bytes);

  uint64_t generation_ = 0;
  uint32_t sequence_ = 0;
};

/// Checks incoming frames. An unknown mandatory type is refused (`unsupported`); a frame of an unknown
/// optional type is passed on like any other, and the consumer's switch skips it.
class FrameReader {
 public:
  /// Frames of a lower generation are refused from now on (0: any is accepted, but a generation never falls
  /// from one frame to the next).
  void set_generation(uint64_t generation) { generation_ = generation; }

  /// Looks for one whole frame at the start of `bytes`. *consumed is 0 and the result ok with an empty
  /// optional-like view (header.magic == 0) when more bytes are needed. A failure is final for the
  /// connection: it is repeated by every later call. What is wrong with a header is told before its body has
  /// come.
  Status next(std::span<const std::byte> bytes, FrameView* frame, size_t* consumed);

 private:
  Status check_header(const FrameHeader& header) const;

  uint64_t generation_ = 0;
  uint32_t sequence_ = 0;
  Status failure_;
};

/// Chains frame checksums into an epoch's digest: order matters, and so does every bit of every frame.
class EpochDigest {
 public:
  void add(uint64_t frame_checksum);
  uint64_t value() const { return value_; }
  uint64_t frames() const { return frames_; }
  void reset() { *this = {}; }

 private:
  uint64_t value_ = 0;
  uint64_t frames_ = 0;
};

}  // namespace remusd::ckpt
