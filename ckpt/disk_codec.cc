// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A DISK body: u32 count, u32 0, `count` entries of 24 bytes, then the payloads in the same order.
#include "ckpt/disk_codec.h"

#include <lz4.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

constexpr size_t kDiskHeadBytes = 8;
// Below this lz4 costs more time than the bytes are worth.
constexpr size_t kCompressFrom = 256;
// Of a run, encoded apart from the rest of it; it stays in the processor's cache while it is.
constexpr size_t kPieceBytes = 128u << 10;
constexpr size_t kProbeFrom = 32u << 10, kProbeBytes = 8u << 10;

Status bad(const std::string& why) {
  return {Code::corrupt, "DISK record: " + why};
}

Status bad_run(uint32_t index, const char* why) {
  return bad("run " + std::to_string(index) + " " + why);
}

uint32_t count_of(View body) {
  uint32_t count = 0;
  if (body.size() >= kDiskHeadBytes) std::memcpy(&count, body.data(), sizeof count);
  return count;
}

DiskEntry entry_at(View body, size_t index) {
  DiskEntry entry;
  std::memcpy(&entry, body.data() + kDiskHeadBytes + index * sizeof entry, sizeof entry);
  return entry;
}

bool all_zero(View data) {
  return data[0] == std::byte{0} && std::memcmp(data.data(), data.data() + 1, data.size() - 1) == 0;
}

const char* wrong_with(const DiskEntry& entry, std::span<const uint64_t> disk_bytes) {
  for (const uint8_t byte : entry.reserved)
    if (byte != 0) return "has reserved bytes that are not 0";
  if (entry.disk >= disk_bytes.size()) return "is of a disk that the guest does not have";
  if (entry.bytes == 0 || entry.bytes > kMaxDiskRunBytes) return "is empty or too long";
  const uint64_t size = disk_bytes[entry.disk];
  if (entry.offset > size || entry.bytes > size - entry.offset) return "lies outside its disk";
  switch (static_cast<DiskEncoding>(entry.encoding)) {
    case DiskEncoding::zero:
    case DiskEncoding::hole:
      return entry.payload_bytes == 0 ? nullptr : "of zeros has a payload";
    case DiskEncoding::raw:
      return entry.payload_bytes == entry.bytes ? nullptr : "has a payload of another length";
    case DiskEncoding::lz4:
      return entry.payload_bytes > 0 && entry.payload_bytes < entry.bytes ? nullptr
                                                                          : "is not made smaller by lz4";
  }
  return "has an unknown encoding";
}

/// Each entry with its payload. REQUIRES: a checked body.
template <typename Function>
Status for_each(View body, Function function) {
  const uint32_t count = count_of(body);
  size_t at = kDiskHeadBytes + count * sizeof(DiskEntry);
  for (uint32_t i = 0; i < count; ++i) {
    const DiskEntry entry = entry_at(body, i);
    REMUSD_ASSERT(entry.payload_bytes <= body.size() - at, "the body was checked");
    REMUSD_TRY(function(i, entry, body.subspan(at, entry.payload_bytes)));
    at += entry.payload_bytes;
  }
  return {};
}

/// False when the block does not decode to exactly out->size() bytes.
bool decompress(View block, Bytes* out) {
  const int size =
      LZ4_decompress_safe(reinterpret_cast<const char*>(block.data()), reinterpret_cast<char*>(out->data()),
                          static_cast<int>(block.size()), static_cast<int>(out->size()));
  return size >= 0 && static_cast<size_t>(size) == out->size();
}

constexpr const char* kNotARun = "does not decompress to its length";

}  // namespace

bool DiskBody::add(const DiskRun& run) {
  REMUSD_ASSERT(run.bytes > 0 && run.bytes <= kMaxDiskRunBytes, "the caller cuts changes into runs");
  REMUSD_ASSERT(run.encoding != DiskEncoding::lz4, "lz4 is ours to choose");
  const bool raw = run.encoding == DiskEncoding::raw;
  const size_t pieces = raw ? (run.bytes + kPieceBytes - 1) / kPieceBytes : 1;
  if (entries_.size() + pieces > kMaxDiskRunsPerFrame) return false;
  const size_t used = kDiskHeadBytes + (entries_.size() + pieces) * sizeof(DiskEntry) + payloads_.size();
  // Told without looking at the data, so that a run is encoded once.
  if (raw && used + run.bytes > kMaxBodyBytes) return false;
  raw_bytes_ += run.bytes;
  of_run_ = entries_.size();
  if (!raw) {
    add_entry(run, run.encoding, {});
    return true;
  }
  REMUSD_ASSERT(run.data.size() == run.bytes, "a raw run brings its bytes");
  for (size_t at = 0; at < run.bytes; at += kPieceBytes) {
    DiskRun piece = run;
    piece.offset = run.offset + at;
    piece.bytes = static_cast<uint32_t>(std::min(run.bytes - at, kPieceBytes));
    piece.data = run.data.subspan(at, piece.bytes);
    add_piece(piece);
  }
  return true;
}

void DiskBody::add_piece(const DiskRun& piece) {
  if (all_zero(piece.data)) return add_entry(piece, DiskEncoding::zero, {});
  if (const View block = compressed(piece.data); !block.empty())
    return add_entry(piece, DiskEncoding::lz4, block);
  add_entry(piece, DiskEncoding::raw, piece.data);
}

/// Pieces of one run that are encoded alike, but for lz4's blocks, are one entry: one write at the backup.
void DiskBody::add_entry(const DiskRun& run, DiskEncoding encoding, View payload) {
  put_bytes(payload, &payloads_);
  const auto payload_bytes = static_cast<uint32_t>(payload.size());
  if (entries_.size() > of_run_ && encoding != DiskEncoding::lz4 &&
      entries_.back().encoding == static_cast<uint8_t>(encoding)) {
    entries_.back().bytes += run.bytes;
    entries_.back().payload_bytes += payload_bytes;
    return;
  }
  DiskEntry entry;
  entry.offset = run.offset;
  entry.bytes = run.bytes;
  entry.payload_bytes = payload_bytes;
  entry.disk = run.disk;
  entry.encoding = static_cast<uint8_t>(encoding);
  entries_.push_back(entry);
}

/// As a block in scratch_; empty when it is not worth it. What lz4 finds little in costs it the most time: of
/// a large piece it is shown the beginning first.
View DiskBody::compressed(View data) {
  if (data.size() < kCompressFrom) return {};
  if (data.size() >= kProbeFrom && compressed(data.first(kProbeBytes)).empty()) return {};
  scratch_.resize(data.size() - data.size() / 8);
  const int size = LZ4_compress_default(reinterpret_cast<const char*>(data.data()),
                                        reinterpret_cast<char*>(scratch_.data()),
                                        static_cast<int>(data.size()), static_cast<int>(scratch_.size()));
  return View(scratch_).first(static_cast<size_t>(size));
}

void DiskBody::take(Bytes* out) {
  REMUSD_ASSERT(!empty(), "a body has a run");
  put(static_cast<uint32_t>(entries_.size()), out);
  put(uint32_t{0}, out);
  put_bytes(std::as_bytes(std::span(entries_)), out);
  put_bytes(payloads_, out);
  entries_.clear();
  payloads_.clear();
  raw_bytes_ = 0;
}

Status check_disk(View body, std::span<const uint64_t> disk_bytes, uint64_t* raw_bytes) {
  *raw_bytes = 0;
  if (body.size() < kDiskHeadBytes) return bad("count is cut off");
  const uint32_t count = count_of(body);
  if (count == 0 || count > kMaxDiskRunsPerFrame)
    return bad("count " + std::to_string(count) + " is not within 1 to " +
               std::to_string(kMaxDiskRunsPerFrame));
  uint32_t reserved = 0;
  std::memcpy(&reserved, body.data() + sizeof count, sizeof reserved);
  if (reserved != 0) return bad("reserved is not 0");
  if (body.size() < kDiskHeadBytes + count * sizeof(DiskEntry)) return bad("table is cut off");
  uint64_t payload_bytes = 0, changed = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const DiskEntry entry = entry_at(body, i);
    if (const char* why = wrong_with(entry, disk_bytes); why != nullptr) return bad_run(i, why);
    payload_bytes += entry.payload_bytes;
    changed += entry.bytes;
  }
  if (payload_bytes != body.size() - kDiskHeadBytes - count * sizeof(DiskEntry))
    return bad("payloads do not fill the body");
  *raw_bytes = changed;
  return {};
}

Status verify_disk(View body) {
  Bytes scratch;
  return for_each(body, [&](uint32_t index, const DiskEntry& entry, View payload) -> Status {
    if (static_cast<DiskEncoding>(entry.encoding) != DiskEncoding::lz4) return {};
    scratch.resize(entry.bytes);
    return decompress(payload, &scratch) ? Status() : bad_run(index, kNotARun);
  });
}

Status apply_disk(View body, const std::function<Status(const DiskRun& run)>& apply) {
  Bytes scratch;
  return for_each(body, [&](uint32_t index, const DiskEntry& entry, View payload) -> Status {
    DiskRun run{entry.disk, entry.offset, entry.bytes, static_cast<DiskEncoding>(entry.encoding), payload};
    if (run.encoding == DiskEncoding::lz4) {
      scratch.resize(entry.bytes);
      if (!decompress(payload, &scratch)) return bad_run(index, kNotARun);
      run.encoding = DiskEncoding::raw;
      run.data = scratch;
    }
    return apply(run);
  });
}

Result<bool> is_held(View body, uint32_t held) {
  uint32_t count = 0;
  std::memcpy(&count, body.data(), sizeof count);
  size_t of_held = 0;
  for (uint32_t i = 0; i < count; ++i) {
    DiskEntry entry;
    std::memcpy(&entry, body.data() + 8 + i * sizeof entry, sizeof entry);
    of_held += held >> entry.disk & 1U;
  }
  if (of_held == 0 || of_held == count) return of_held > 0;
  return Status(Code::corrupt, "DISK record: runs of held disks and of others in one body");
}

}  // namespace remusd::ckpt
