// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Frame bodies as plain data. encode_* append a body to *out; decode_* check everything they read and refuse
// with `corrupt` (truncated, oversized, trailing bytes, wrong value), naming the record and the field;
// *record is then unspecified. A string longer than kMaxStringBytes is cut when it is encoded, and control
// characters in it become '?' (newlines may stand in a reason). Byte diagrams are in FORMAT.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/format.h"
#include "ckpt/pages.h"
#include "ckpt/status.h"

namespace remusd::ckpt {

using Bytes = std::vector<std::byte>;
using View = std::span<const std::byte>;
using SessionId = std::array<uint8_t, 16>;

struct Hello {
  uint16_t version_min = kVersion;
  uint16_t version_max = kVersion;
  uint64_t features = 0;           // offered by the sender; the session uses the intersection
  uint64_t features_required = 0;  // the session ends when the receiver lacks one
  SessionId session{};             // chosen by the primary at random; the backup repeats it
  uint64_t generation = 0;
  std::string node;      // name of the sender
  std::string vm;        // name of the guest
  std::string software;  // "remusd 0.1.0", for messages only
};
struct Refuse {  // also GOODBYE
  Code code = Code::ok;
  std::string reason;
};
struct FileNeed {
  std::string role;
  std::string digest;
  uint64_t bytes = 0;
};
struct NeedFiles {
  std::vector<FileNeed> files;
};
struct FilePart {
  std::string digest;
  uint64_t total_bytes = 0;
  uint64_t offset = 0;
  View data;  // into the frame
};
struct Ready {
  uint64_t staging_limit_bytes = 0;  // an epoch whose frames need more is refused
  uint64_t memory_bytes = 0;
};
/// Part of a blob (device state, base stream); parts come in order and cover it without a gap.
struct BlobPart {
  uint64_t total_bytes = 0;                   // of the whole blob, decoded
  uint64_t offset = 0;                        // of this part, decoded
  uint32_t raw_bytes = 0;                     // of this part, decoded; <= 1 MiB
  PageEncoding encoding = PageEncoding::raw;  // any but zero
  View data;                                  // into the frame
};
struct Commit {
  uint64_t frames = 0;  // of the epoch, this one not counted
  uint64_t pages = 0;
  uint64_t device_bytes = 0;  // decoded
  uint64_t raw_bytes = 0;     // pages and blobs, decoded
  uint64_t digest = 0;        // EpochDigest over those frames
};
struct Ack {
  uint64_t digest = 0;  // repeats the commit's
  // Newest epoch in the committed image, whose disks survive a loss of power; <= the acknowledged one.
  uint64_t applied_epoch = 0;
};
struct Heartbeat {
  uint64_t sent_ns = 0;  // sender's monotonic clock
  uint64_t echo_ns = 0;  // the peer's newest sent_ns, plus the time it was kept here; 0: none yet
};
struct Progress {
  uint64_t received_bytes = 0;
};
/// failover: take over from the newest committed epoch. switchover: the same after the last epoch of a guest
/// that stands; from B to P it asks P to begin one.
enum class OrderKind : uint16_t { failover = 1, switchover = 2 };
struct Order {
  OrderKind kind = OrderKind::failover;
};
/// Of held disks: all that epoch `epoch` and those before it changed is on the shared storage, and flushed.
struct Settled {
  uint64_t epoch = 0;
};
struct Input {
  uint16_t card = 0;  // of the guest's network cards, in the order of the definition
  View frame;         // an Ethernet frame; into the record's body
};

void encode(const Hello& record, Bytes* out);
void encode(const Refuse& record, Bytes* out);
void encode(const NeedFiles& record, Bytes* out);
void encode(const FilePart& record, Bytes* out);
void encode(const Ready& record, Bytes* out);
void encode(const BlobPart& record, Bytes* out);
void encode(const Commit& record, Bytes* out);
void encode(const Ack& record, Bytes* out);
void encode(const Heartbeat& record, Bytes* out);
void encode(const Progress& record, Bytes* out);
void encode(const Order& record, Bytes* out);
void encode(const Input& record, Bytes* out);
void encode(const Settled& record, Bytes* out);

Status decode(View body, Hello* record);
Status decode(View body, Refuse* record);
Status decode(View body, NeedFiles* record);
Status decode(View body, FilePart* record);
Status decode(View body, Ready* record);
Status decode(View body, BlobPart* record);
Status decode(View body, Commit* record);
Status decode(View body, Ack* record);
Status decode(View body, Heartbeat* record);
Status decode(View body, Progress* record);
Status decode(View body, Order* record);
Status decode(View body, Input* record);
Status decode(View body, Settled* record);

/// DEFINITION and FACTS: the body is the JSON text itself, 1 to kMaxTextBytes bytes. *text lies in the body.
Status decode_text(View body, std::string_view* text);

/// The version to speak, or why there is none ("peer b speaks versions 2 to 3, this side 1 to 1: …").
Result<uint16_t> negotiate(const Hello& ours, const Hello& theirs);

/// Appends the body of the part of `blob` that begins at `offset`: at most 1 MiB, lz4 where that is smaller.
/// Call it from offset 0 until *next_offset == blob.size(); an empty blob is one empty part.
/// `invalid` when the blob is larger than kMaxBlobBytes or `offset` lies outside it.
Status append_blob_part(View blob, uint64_t offset, Bytes* out, uint64_t* next_offset);
/// Writes raw_bytes at blob[offset]; deltas are for decode_delta_part() (blob_delta.h).
/// REQUIRES: decode() accepted the part. The caller has sized the blob.
Status decode_blob_part(const BlobPart& part, std::span<std::byte> blob);

/// Collects the parts of one blob and checks order, gaps and total. After a failure only reset() helps.
/// reset() keeps the memory for the next blob; take() gives it away.
class BlobAssembler {
 public:
  /// `base` is the blob that deltas are taken against; empty: they are refused.
  Status add(const BlobPart& part, View base = {});
  bool complete() const { return started_ && received_ == total_; }
  const Bytes& blob() const { return blob_; }
  Bytes take();
  void reset();

 private:
  Bytes blob_;
  uint64_t received_ = 0;
  uint64_t total_ = 0;
  bool started_ = false;
};

}  // namespace remusd::ckpt
