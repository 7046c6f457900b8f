// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A DISK body: u32 count, u32 0, `count` entries of 24 bytes, then the payloads in the same order.
#include "ckpt/disk_codec.h"

#include <lz4.h>

#include <cstring>
#include <string>

#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

constexpr size_t kDiskHeadBytes = 8;
// Below this lz4 costs more time than the bytes are worth.
constexpr size_t kCompressFrom = 256;

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
  if (entries_.size() == kMaxDiskRunsPerFrame) return false;
  const size_t used = kDiskHeadBytes + (entries_.size() + 1) * sizeof(DiskEntry) + payloads_.size();
  // Told without looking at the data, so that a run is encoded once.
  if (run.encoding == DiskEncoding::raw && used + run.bytes > kMaxBodyBytes) return false;

  DiskEntry entry;
  entry.offset = run.offset;
  entry.bytes = run.bytes;
  entry.disk = run.disk;
  DiskEncoding encoding = run.encoding;
  View payload;
  if (encoding == DiskEncoding::raw) {
    REMUSD_ASSERT(run.data.size() == run.bytes, "a raw run brings its bytes");
    payload = run.data;
    if (all_zero(run.data)) {
      encoding = DiskEncoding::zero;
      payload = {};
    } else if (run.bytes >= kCompressFrom) {
      scratch_.resize(run.bytes - run.bytes / 8);
      const int size = LZ4_compress_default(reinterpret_cast<const char*>(run.data.data()),
                                            reinterpret_cast<char*>(scratch_.data()),
                                            static_cast<int>(run.bytes), static_cast<int>(scratch_.size()));
      if (size > 0) {
        encoding = DiskEncoding::lz4;
        payload = View(scratch_).first(static_cast<size_t>(size));
      }
    }
  }
  entry.encoding = static_cast<uint8_t>(encoding);
  entry.payload_bytes = static_cast<uint32_t>(payload.size());
  entries_.push_back(entry);
  put_bytes(payload, &payloads_);
  raw_bytes_ += run.bytes;
  return true;
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
