// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/disk_digest.h"

#include <cstring>

#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

constexpr uint32_t kZeros = 1;

void get_kind(Cursor* in, DiskAskKind* kind) {
  *kind = in->get<DiskAskKind>("kind");
  in->require(*kind == DiskAskKind::map || *kind == DiskAskKind::blocks, "kind", "is unknown");
}

}  // namespace

void encode(const DiskAsk& record, Bytes* out) {
  put(record.kind, out);
  put(record.disk, out);
  put(uint32_t{0}, out);
  put(record.offset, out);
  put(record.bytes, out);
  put_bytes(std::as_bytes(std::span(record.key)), out);
}

Status decode(View body, DiskAsk* record) {
  Cursor in("DISK_ASK", body);
  get_kind(&in, &record->kind);
  record->disk = in.get<uint16_t>("disk");
  in.require(in.get<uint32_t>("reserved") == 0, "reserved", "is not 0");
  record->offset = in.get<uint64_t>("offset");
  record->bytes = in.get<uint64_t>("bytes");
  if (const View key = in.take(kDigestKeyBytes, "key"); !key.empty())
    std::memcpy(record->key.data(), key.data(), key.size());
  if (record->kind == DiskAskKind::map) {
    in.require(record->disk == 0, "disk", "is not 0");
    in.require(record->bytes == 0, "bytes", "are not 0");
  } else {
    in.require(record->offset % kDiskBlockBytes == 0, "offset", "is not that of a block");
    in.require(record->bytes >= 1, "bytes", "are none");
  }
  return in.finish();
}

void encode(const DiskTell& record, Bytes* out) {
  put(record.kind, out);
  put(record.disk, out);
  put(record.zeros ? kZeros : uint32_t{0}, out);
  put(record.offset, out);
  put(record.bytes, out);
  if (record.kind == DiskAskKind::map) {
    put(record.point, out);
    put(record.region_bytes, out);
  } else {
    put(record.epoch, out);
  }
  put_bytes(record.data, out);
}

Status decode(View body, DiskTell* record) {
  Cursor in("DISK_TELL", body);
  get_kind(&in, &record->kind);
  record->disk = in.get<uint16_t>("disk");
  const auto flags = in.get<uint32_t>("flags");
  in.require((flags & ~kZeros) == 0, "flags", "are unknown");
  record->zeros = flags == kZeros;
  record->offset = in.get<uint64_t>("offset");
  record->bytes = in.get<uint64_t>("bytes");
  if (record->kind == DiskAskKind::map) {
    in.require(record->disk == 0 && flags == 0, "disk", "is none");
    in.require(record->bytes <= kMaxMapBytesTold, "bytes", "are too many");
    record->point = in.get<SessionId>("point");
    record->region_bytes = in.get<uint64_t>("region_bytes");
    in.require(record->region_bytes >= kDiskBlockBytes, "region_bytes", "are too few");
    if (in.ok()) record->data = in.take(record->bytes, "bits");
    return in.finish();
  }
  in.require(record->offset % kDiskBlockBytes == 0, "offset", "is not that of a block");
  in.require(record->bytes >= 1, "bytes", "are none");
  record->epoch = in.get<uint64_t>("epoch");
  if (!record->zeros) {
    in.require(record->bytes <= kMaxDiskBlocksTold * kDiskBlockBytes, "bytes", "are too many");
    if (in.ok()) record->data = in.take(disk_blocks(record->bytes) * sizeof(PageDigest), "digests");
  }
  return in.finish();
}

}  // namespace remusd::ckpt
