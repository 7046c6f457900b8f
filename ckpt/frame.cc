// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/frame.h"

#define XXH_STATIC_LINKING_ONLY  // for a hash state on the stack
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

namespace remusd::ckpt {
namespace {

static_assert(std::endian::native == std::endian::little, "headers are copied as they lie in memory");

/// XXH3-64 over the header with its checksum field 0, then the body.
uint64_t checksum_of(FrameHeader header, std::span<const std::byte> body) {
  header.checksum = 0;
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, &header, sizeof header);
  XXH3_64bits_update(&state, body.data(), body.size());
  return XXH3_64bits_digest(&state);
}

Status bad_frame(const std::string& why) {
  return {Code::corrupt, "frame refused: " + why};
}

}  // namespace

FrameHeader FrameWriter::next_header(FrameType type, uint64_t epoch, size_t body_bytes) {
  REMUSD_ASSERT(body_bytes <= kMaxBodyBytes, "the caller cuts what is larger into several frames");
  FrameHeader header;
  header.type = static_cast<uint16_t>(type);
  header.body_bytes = static_cast<uint32_t>(body_bytes);
  header.sequence = sequence_++;
  header.generation = generation_;
  header.epoch = epoch;
  return header;
}

FrameHeader FrameWriter::seal(FrameType type, uint64_t epoch, std::span<const std::byte> body) {
  FrameHeader header = next_header(type, epoch, body.size());
  header.checksum = checksum_of(header, body);
  return header;
}

uint64_t FrameWriter::append(FrameType type, uint64_t epoch, std::span<const std::byte> body,
                             std::vector<std::byte>* out) {
  const FrameHeader header = seal(type, epoch, body);
  const auto* bytes = reinterpret_cast<const std::byte*>(&header);
  out->insert(out->end(), bytes, bytes + sizeof header);
  out->insert(out->end(), body.begin(), body.end());
  return header.checksum;
}

size_t FrameWriter::begin(std::vector<std::byte>* out) {
  const size_t offset = out->size();
  out->resize(offset + sizeof(FrameHeader));
  return offset;
}

uint64_t FrameWriter::finish(size_t offset, FrameType type, uint64_t epoch, std::vector<std::byte>* out) {
  REMUSD_ASSERT(offset + sizeof(FrameHeader) <= out->size(), "begin() made room for the header");
  const std::span<const std::byte> body = std::span(*out).subspan(offset + sizeof(FrameHeader));
  const FrameHeader header = seal(type, epoch, body);
  std::memcpy(out->data() + offset, &header, sizeof header);
  return header.checksum;
}

Status FrameReader::check_header(const FrameHeader& header) const {
  if (header.flags != 0)
    return bad_frame("flags " + std::to_string(header.flags) + " are unknown to version 1");
  if (header.body_bytes > kMaxBodyBytes) {
    return bad_frame("a body of " + std::to_string(header.body_bytes) + " bytes is larger than the " +
                     std::to_string(kMaxBodyBytes) + " allowed");
  }
  if (header.sequence != sequence_) {
    return bad_frame("number " + std::to_string(header.sequence) + " came where " +
                     std::to_string(sequence_) + " was due");
  }
  if (header.generation < generation_) {
    return bad_frame("generation " + std::to_string(header.generation) + " is older than this session's " +
                     std::to_string(generation_));
  }
  return {};
}

Status FrameReader::next(std::span<const std::byte> bytes, FrameView* frame, size_t* consumed) {
  *frame = {};
  frame->header.magic = 0;
  *consumed = 0;
  if (!failure_.ok()) return failure_;

  // A stranger is told by its first bytes: do not wait for 40 of them.
  const uint32_t magic = kMagic;
  if (!bytes.empty() && std::memcmp(bytes.data(), &magic, std::min(bytes.size(), sizeof magic)) != 0)
    return failure_ = bad_frame("it does not begin with the magic number; is the peer a remusd?");
  if (bytes.size() < sizeof(FrameHeader)) return {};

  FrameHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (failure_ = check_header(header); !failure_.ok()) return failure_;
  if (bytes.size() - sizeof header < header.body_bytes) return {};

  const std::span<const std::byte> body = bytes.subspan(sizeof header, header.body_bytes);
  if (checksum_of(header, body) != header.checksum)
    return failure_ = bad_frame("checksum of frame " + std::to_string(header.sequence) + " (type " +
                                std::to_string(header.type) + ") does not match");
  // After the checksum, so that a flipped bit is not taken for a peer of another version.
  if ((header.type & kOptionalBit) == 0 && !is_known(header.type)) {
    return failure_ = Status(Code::unsupported, "frame refused: type " + std::to_string(header.type) +
                                                    " is mandatory and unknown here; the peer is newer");
  }
  ++sequence_;
  generation_ = std::max(generation_, header.generation);
  frame->header = header;
  frame->body = body;
  *consumed = sizeof header + body.size();
  return {};
}

void EpochDigest::add(uint64_t frame_checksum) {
  const uint64_t chain[2] = {value_, frame_checksum};
  value_ = XXH3_64bits(chain, sizeof chain);
  ++frames_;
}

}  // namespace remusd::ckpt
