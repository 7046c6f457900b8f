// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/digests.h"

#include <algorithm>
#include <cstring>

#include "ckpt/disk_codec.h"
#include "ckpt/wire.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;
using ckpt::kDiskBlockBytes;
using ckpt::PageDigest;
using ckpt::View;

constexpr uint64_t kPieceBytes = ckpt::kMaxDiskRunBytes;

constexpr uint64_t down(uint64_t place) {
  return place - place % kDiskBlockBytes;
}

/// A run that is all hole or may be data, from a block's beginning, at most to `end`.
struct Piece {
  uint64_t offset = 0, bytes = 0;
  bool hole = false;
};

Result<Piece> piece_at(Medium& disk, uint64_t offset, uint64_t end) {
  REMUSD_ASSIGN(const LocalFile::Run data, disk.next_data(offset));
  const uint64_t hole_until = data.begin >= end ? end : down(data.begin);
  if (hole_until > offset) return Piece{offset, hole_until - offset, true};
  const uint64_t until = std::min(end, down(data.end + kDiskBlockBytes - 1));
  return Piece{offset, std::min(std::max(until, offset + 1), end) - offset, false};
}

uint64_t block_at(const Piece& piece, uint64_t place) {
  return std::min(kDiskBlockBytes, piece.bytes - place);
}

bool all_zero(View bytes) {
  return bytes.empty() ||
         (bytes[0] == std::byte{} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace

Status tell_blocks(Medium& disk, const ckpt::DiskAsk& ask, uint64_t epoch, Bytes* body) {
  REMUSD_ASSERT(ask.offset < disk.bytes(), "what is asked for begins within the disk");
  const uint64_t end = ask.offset + std::min(ask.bytes, disk.bytes() - ask.offset);
  ckpt::DiskTell tell;
  tell.kind = ckpt::DiskAskKind::blocks;
  tell.disk = ask.disk;
  tell.offset = ask.offset;
  tell.epoch = epoch;
  REMUSD_ASSIGN(const Piece piece, piece_at(disk, ask.offset, end));
  tell.zeros = piece.hole;
  tell.bytes = piece.hole ? piece.bytes : std::min(piece.bytes, ckpt::kMaxDiskBlocksTold * kDiskBlockBytes);
  Bytes digests, buffer;
  for (uint64_t at = 0; !tell.zeros && at < tell.bytes; at += kPieceBytes) {
    buffer.resize(std::min(kPieceBytes, tell.bytes - at));
    REMUSD_TRY(disk.read(tell.offset + at, buffer));
    for (uint64_t in = 0; in < buffer.size(); in += kDiskBlockBytes)
      ckpt::put(
          ckpt::digest_of(ask.key, View(buffer).subspan(in, std::min(kDiskBlockBytes, buffer.size() - in))),
          &digests);
  }
  tell.data = digests;
  ckpt::encode(tell, body);
  return {};
}

Status compare_blocks(Medium& disk, const ckpt::DiskTell& told, const ckpt::DigestKey& key, Bytes* buffer,
                      const std::function<Status(const ckpt::DiskRun& run)>& differs) {
  const uint64_t end = told.offset + told.bytes;
  REMUSD_ASSERT(end <= disk.bytes() && told.offset % kDiskBlockBytes == 0, "it lies within the disk");
  const Bytes zeros(kDiskBlockBytes);
  for (uint64_t offset = told.offset; offset < end;) {
    REMUSD_ASSIGN(Piece piece, piece_at(disk, offset, end));
    piece.bytes = std::min(piece.bytes, kPieceBytes);
    offset += piece.bytes;
    if (piece.hole && told.zeros) continue;
    buffer->resize(piece.hole ? 0 : piece.bytes);
    if (!piece.hole) REMUSD_TRY(disk.read(piece.offset, *buffer));
    const auto same = [&](uint64_t at) {
      const uint64_t bytes = block_at(piece, at);
      const View ours = piece.hole ? View(zeros).first(bytes) : View(*buffer).subspan(at, bytes);
      if (told.zeros) return all_zero(ours);
      return ckpt::digest_of(key, ours) == told.digest((piece.offset + at - told.offset) / kDiskBlockBytes);
    };
    for (uint64_t at = 0; at < piece.bytes; at += block_at(piece, at)) {
      if (same(at)) continue;
      const uint64_t begin = at;
      while (at + block_at(piece, at) < piece.bytes && !same(at + block_at(piece, at)))
        at += block_at(piece, at);
      ckpt::DiskRun run;
      run.disk = told.disk;
      run.offset = piece.offset + begin;
      run.bytes = static_cast<uint32_t>(at + block_at(piece, at) - begin);
      run.encoding = piece.hole ? ckpt::DiskEncoding::hole : ckpt::DiskEncoding::raw;
      if (!piece.hole) run.data = View(*buffer).subspan(begin, run.bytes);
      REMUSD_TRY(differs(run));
    }
  }
  return {};
}

}  // namespace remusd::disk
