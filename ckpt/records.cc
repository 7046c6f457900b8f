// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Encoders and decoders side by side, in the order of records.h. The layouts are specified in FORMAT.md.
#include "ckpt/records.h"

#include <algorithm>
#include <string>

#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

// The numbers on the wire are the enum's own, and FORMAT.md lists them.
static_assert(static_cast<int>(Code::ok) == 0 && static_cast<int>(Code::unsafe) == 4 &&
              static_cast<int>(Code::corrupt) == 7 && static_cast<int>(Code::io) == 11);
constexpr uint16_t kLastCode = static_cast<uint16_t>(Code::io);

/// offset + size <= total, without overflow.
bool lies_within(uint64_t offset, uint64_t size, uint64_t total) {
  return offset <= total && size <= total - offset;
}

}  // namespace

void encode(const Hello& record, Bytes* out) {
  put(record.version_min, out);
  put(record.version_max, out);
  put(uint32_t{0}, out);
  put(record.features, out);
  put(record.features_required, out);
  put(record.session, out);
  put(record.generation, out);
  put_string(record.node, out);
  put_string(record.vm, out);
  put_string(record.software, out);
}

Status decode(View body, Hello* record) {
  Cursor in("HELLO", body);
  record->version_min = in.get<uint16_t>("version_min");
  record->version_max = in.get<uint16_t>("version_max");
  in.require(record->version_min >= 1 && record->version_min <= record->version_max, "version_min",
             "is 0 or above version_max");
  in.require(in.get<uint32_t>("reserved") == 0, "reserved", "is not 0");
  record->features = in.get<uint64_t>("features");
  record->features_required = in.get<uint64_t>("features_required");
  in.require((record->features_required & ~record->features) == 0, "features_required",
             "asks for what the sender does not offer");
  record->session = in.get<SessionId>("session");
  record->generation = in.get<uint64_t>("generation");
  record->node = in.get_string("node");
  record->vm = in.get_string("vm");
  record->software = in.get_string("software");
  return in.finish();
}

void encode(const Refuse& record, Bytes* out) {
  put(static_cast<uint16_t>(record.code), out);
  put(uint16_t{0}, out);
  put_string(record.reason, out, /*lines=*/true);
}

Status decode(View body, Refuse* record) {
  Cursor in("REFUSE or GOODBYE", body);
  const auto code = in.get<uint16_t>("code");
  in.require(code <= kLastCode, "code", "is unknown");
  record->code = static_cast<Code>(std::min(code, kLastCode));
  in.require(in.get<uint16_t>("reserved") == 0, "reserved", "is not 0");
  record->reason = in.get_string("reason", /*lines=*/true);
  return in.finish();
}

void encode(const NeedFiles& record, Bytes* out) {
  REMUSD_ASSERT(record.files.size() <= kMaxFilesNeeded, "a guest has a handful of boot files");
  put(static_cast<uint32_t>(record.files.size()), out);
  for (const FileNeed& file : record.files) {
    put(file.bytes, out);
    put_string(file.role, out);
    put_string(file.digest, out);
  }
}

Status decode(View body, NeedFiles* record) {
  Cursor in("NEED_FILES", body);
  const auto count = in.get<uint32_t>("count");
  in.require(count <= kMaxFilesNeeded, "count", "is too large");
  record->files.clear();
  for (uint32_t i = 0; in.ok() && i < count; ++i) {
    FileNeed& file = record->files.emplace_back();
    file.bytes = in.get<uint64_t>("bytes");
    in.require(file.bytes <= kMaxFileBytes, "bytes", "is too large");
    file.role = in.get_string("role");
    file.digest = in.get_string("digest");
    in.require(!file.digest.empty(), "digest", "is empty");
  }
  return in.finish();
}

void encode(const FilePart& record, Bytes* out) {
  put(record.total_bytes, out);
  put(record.offset, out);
  put(static_cast<uint32_t>(record.data.size()), out);
  put_string(record.digest, out);
  put_bytes(record.data, out);
}

Status decode(View body, FilePart* record) {
  Cursor in("FILE", body);
  record->total_bytes = in.get<uint64_t>("total_bytes");
  in.require(record->total_bytes <= kMaxFileBytes, "total_bytes", "is too large");
  record->offset = in.get<uint64_t>("offset");
  const auto data_bytes = in.get<uint32_t>("data_bytes");
  in.require(lies_within(record->offset, data_bytes, record->total_bytes), "data_bytes",
             "reaches past the file");
  in.require(data_bytes > 0 || record->total_bytes == 0, "data_bytes", "is 0");
  record->digest = in.get_string("digest");
  in.require(!record->digest.empty(), "digest", "is empty");
  record->data = in.take(data_bytes, "data");
  return in.finish();
}

void encode(const Ready& record, Bytes* out) {
  put(record.staging_limit_bytes, out);
  put(record.memory_bytes, out);
}

Status decode(View body, Ready* record) {
  Cursor in("READY", body);
  record->staging_limit_bytes = in.get<uint64_t>("staging_limit_bytes");
  record->memory_bytes = in.get<uint64_t>("memory_bytes");
  in.require(record->memory_bytes % kPageSize == 0, "memory_bytes", "is not a multiple of the page size");
  return in.finish();
}

void encode(const BlobPart& record, Bytes* out) {
  put(record.total_bytes, out);
  put(record.offset, out);
  put(record.raw_bytes, out);
  put(static_cast<uint32_t>(record.encoding), out);
  put_bytes(record.data, out);
}

Status decode(View body, BlobPart* record) {
  Cursor in("DEVICE or BASE", body);
  record->total_bytes = in.get<uint64_t>("total_bytes");
  in.require(record->total_bytes <= kMaxBlobBytes, "total_bytes", "is too large");
  record->offset = in.get<uint64_t>("offset");
  record->raw_bytes = in.get<uint32_t>("raw_bytes");
  in.require(record->raw_bytes <= kMaxBlobPartBytes, "raw_bytes", "is too large");
  in.require(lies_within(record->offset, record->raw_bytes, record->total_bytes), "raw_bytes",
             "reaches past the blob");
  in.require(record->raw_bytes > 0 || record->total_bytes == 0, "raw_bytes", "is 0");
  const auto encoding = in.get<uint32_t>("encoding");
  record->data = in.take_rest();
  if (encoding == static_cast<uint32_t>(PageEncoding::raw)) {
    record->encoding = PageEncoding::raw;
    in.require(record->data.size() == record->raw_bytes, "data", "is not raw_bytes long");
  } else {
    in.require(encoding == static_cast<uint32_t>(PageEncoding::lz4) ||
                   encoding == static_cast<uint32_t>(PageEncoding::delta) ||
                   encoding == static_cast<uint32_t>(PageEncoding::delta_lz4),
               "encoding", "is unknown");
    record->encoding = static_cast<PageEncoding>(encoding);
    in.require(!record->data.empty() && record->data.size() < record->raw_bytes, "data",
               "is not smaller than raw_bytes");
  }
  return in.finish();
}

void encode(const Commit& record, Bytes* out) {
  put(record.frames, out);
  put(record.pages, out);
  put(record.device_bytes, out);
  put(record.raw_bytes, out);
  put(record.digest, out);
}

Status decode(View body, Commit* record) {
  Cursor in("COMMIT", body);
  record->frames = in.get<uint64_t>("frames");
  record->pages = in.get<uint64_t>("pages");
  record->device_bytes = in.get<uint64_t>("device_bytes");
  in.require(record->device_bytes <= kMaxBlobBytes, "device_bytes", "is too large");
  record->raw_bytes = in.get<uint64_t>("raw_bytes");
  record->digest = in.get<uint64_t>("digest");
  return in.finish();
}

void encode(const Ack& record, Bytes* out) {
  put(record.digest, out);
  put(record.applied_epoch, out);
}

Status decode(View body, Ack* record) {
  Cursor in("ACK", body);
  record->digest = in.get<uint64_t>("digest");
  record->applied_epoch = in.get<uint64_t>("applied_epoch");
  return in.finish();
}

void encode(const Heartbeat& record, Bytes* out) {
  put(record.sent_ns, out);
  put(record.echo_ns, out);
}

Status decode(View body, Heartbeat* record) {
  Cursor in("HEARTBEAT", body);
  record->sent_ns = in.get<uint64_t>("sent_ns");
  record->echo_ns = in.get<uint64_t>("echo_ns");
  return in.finish();
}

void encode(const Progress& record, Bytes* out) {
  put(record.received_bytes, out);
}

Status decode(View body, Progress* record) {
  Cursor in("PROGRESS", body);
  record->received_bytes = in.get<uint64_t>("received_bytes");
  return in.finish();
}

void encode(const Order& record, Bytes* out) {
  put(static_cast<uint16_t>(record.kind), out);
  put(uint16_t{0}, out);
  put(uint32_t{0}, out);
}

Status decode(View body, Order* record) {
  Cursor in("ORDER", body);
  const auto kind = in.get<uint16_t>("kind");
  in.require(kind == 1 || kind == 2, "kind", "is unknown");
  record->kind = static_cast<OrderKind>(kind);
  in.require(in.get<uint16_t>("reserved") == 0, "reserved", "is not 0");
  in.require(in.get<uint32_t>("reserved") == 0, "reserved", "is not 0");
  return in.finish();
}

void encode(const Input& record, Bytes* out) {
  put(record.card, out);
  put(uint16_t{0}, out);
  put(static_cast<uint32_t>(record.frame.size()), out);
  put_bytes(record.frame, out);
}

Status decode(View body, Input* record) {
  Cursor in("INPUT", body);
  record->card = in.get<uint16_t>("card");
  in.require(in.get<uint16_t>("reserved") == 0, "reserved", "is not 0");
  const auto frame_bytes = in.get<uint32_t>("frame_bytes");
  in.require(frame_bytes > 0 && frame_bytes <= kMaxInputBytes, "frame_bytes", "is 0 or too large");
  record->frame = in.take(frame_bytes, "frame");
  return in.finish();
}

void encode(const Settled& record, Bytes* out) {
  put(record.epoch, out);
}

Status decode(View body, Settled* record) {
  Cursor in("SETTLED", body);
  record->epoch = in.get<uint64_t>("epoch");
  in.require(record->epoch > 0, "epoch", "is 0");
  return in.finish();
}

Status decode_text(View body, std::string_view* text) {
  Cursor in("DEFINITION or FACTS", body);
  in.require(!body.empty() && body.size() <= kMaxTextBytes, "text", "is empty or too long");
  const View bytes = in.take_rest();
  *text = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  return in.finish();
}

Result<uint16_t> negotiate(const Hello& ours, const Hello& theirs) {
  const std::string peer = "peer " + (theirs.node.empty() ? "(unnamed)" : theirs.node) +
                           (theirs.software.empty() ? "" : " (" + theirs.software + ")");
  const uint16_t version = std::min(ours.version_max, theirs.version_max);
  if (version < std::max(ours.version_min, theirs.version_min)) {
    const auto range = [](const Hello& hello) {
      return std::to_string(hello.version_min) + " to " + std::to_string(hello.version_max);
    };
    return Status(Code::unsupported, peer + " speaks versions " + range(theirs) + ", this side " +
                                         range(ours) + ": upgrade the older of the two");
  }
  const auto hex = [](uint64_t bits) {
    static constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (; bits != 0 || text.empty(); bits >>= 4) text.insert(text.begin(), kDigits[bits & 15]);
    return "0x" + text;
  };
  if (const uint64_t missing = theirs.features_required & ~ours.features; missing != 0)
    return Status(Code::unsupported,
                  peer + " requires features " + hex(missing) + " that this side lacks: upgrade this side");
  if (const uint64_t missing = ours.features_required & ~theirs.features; missing != 0)
    return Status(Code::unsupported,
                  peer + " lacks the required features " + hex(missing) + ": upgrade the peer");
  return version;
}

}  // namespace remusd::ckpt
