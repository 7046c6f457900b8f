// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Bodies to records. The first byte chooses the record; what decodes is encoded to the same bytes again.
#include "ckpt/disk_digest.h"
#include "ckpt/records.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

enum Kind : uint8_t {
  kHello,
  kRefuse,
  kNeedFiles,
  kFile,
  kReady,
  kBlob,
  kCommit,
  kAck,
  kHeartbeat,
  kProgress,
  kOrder,
  kDiskAsk,
  kDiskTell,
  kText,
  kKinds
};

template <typename Record>
bool round(View body, Record* record) {
  const Status status = ckpt::decode(body, record);
  if (!status.ok()) {
    require_reason(status);
    REMUSD_ASSERT(status.code() == Code::corrupt, "what a peer sent wrongly is corrupt");
    return false;
  }
  Bytes again;
  ckpt::encode(*record, &again);
  REMUSD_ASSERT(same(again, body), "a record is encoded as it was decoded");
  return true;
}

void run_hello(View body) {
  ckpt::Hello theirs;
  if (!round(body, &theirs)) return;
  const auto version = ckpt::negotiate(ckpt::Hello{}, theirs);
  if (!version.ok()) return require_reason(version.status());
  REMUSD_ASSERT(*version >= theirs.version_min && *version <= theirs.version_max, "both speak it");
  REMUSD_ASSERT(theirs.features_required == 0, "what is required is there");
}

template <typename Record>
void run_one(View body) {
  Record record;
  round(body, &record);
}

void run(View bytes) {
  Input input(bytes);
  const uint8_t kind = input.number() % kKinds;
  const View body = input.rest();
  switch (kind) {
    case kHello:
      return run_hello(body);
    case kRefuse:
      return run_one<ckpt::Refuse>(body);
    case kNeedFiles:
      return run_one<ckpt::NeedFiles>(body);
    case kFile:
      return run_one<ckpt::FilePart>(body);
    case kReady:
      return run_one<ckpt::Ready>(body);
    case kBlob:
      return run_one<ckpt::BlobPart>(body);
    case kCommit:
      return run_one<ckpt::Commit>(body);
    case kAck:
      return run_one<ckpt::Ack>(body);
    case kHeartbeat:
      return run_one<ckpt::Heartbeat>(body);
    case kProgress:
      return run_one<ckpt::Progress>(body);
    case kOrder:
      return run_one<ckpt::Order>(body);
    case kDiskAsk:
      return run_one<ckpt::DiskAsk>(body);
    case kDiskTell:
      return run_one<ckpt::DiskTell>(body);
    default: {
      std::string_view text;
      if (const Status status = ckpt::decode_text(body, &text); !status.ok()) return require_reason(status);
      REMUSD_ASSERT(text == text_of(body) && !text.empty(), "the text is the body");
    }
  }
}

template <typename Record>
void seed(Kind kind, const Record& record, Seeds* out) {
  Bytes body{std::byte{kind}};
  ckpt::encode(record, &body);
  out->add(body);
}

void seeds(Seeds* out) {
  ckpt::Hello hello;
  hello.features = hello.features_required = ckpt::kFeatureDelta;
  hello.generation = 3;
  hello.node = "a";
  hello.vm = "g";
  hello.software = "remusd";
  seed(kHello, hello, out);
  hello.version_max = 7;
  hello.features_required = 0;
  seed(kHello, hello, out);
  seed(kRefuse, ckpt::Refuse{Code::unsafe, "no\nnever"}, out);
  seed(kNeedFiles, ckpt::NeedFiles{{{"kernel", "00ff", 1000}, {"initrd", "11", 5}}}, out);
  ckpt::DiskAsk ask{ckpt::DiskAskKind::blocks, 1, 8192, 5000, {}};
  seed(kDiskAsk, ask, out);
  seed(kDiskAsk, ckpt::DiskAsk(), out);
  const Bytes digests(2 * sizeof(ckpt::PageDigest), std::byte{9});
  seed(kDiskTell, ckpt::DiskTell{ask.kind, 1, false, 8192, 5000, 7, {}, 0, digests}, out);
  seed(kDiskTell, ckpt::DiskTell{ask.kind, 1, true, 8192, 1u << 30, 7, {}, 0, {}}, out);
  seed(kDiskTell, ckpt::DiskTell{ckpt::DiskAskKind::map, 0, false, 32, 32, 0, {1}, 1u << 20, digests}, out);
  const Bytes data(9, std::byte{4});
  seed(kFile, ckpt::FilePart{"00ff", 1000, 991, data}, out);
  seed(kReady, ckpt::Ready{1 << 20, 4096}, out);
  seed(kBlob, ckpt::BlobPart{1000, 0, 9, ckpt::PageEncoding::raw, data}, out);
  seed(kBlob, ckpt::BlobPart{1000, 0, 1000, ckpt::PageEncoding::lz4, data}, out);
  seed(kBlob, ckpt::BlobPart{8192, 4096, 4096, ckpt::PageEncoding::delta, data}, out);
  seed(kCommit, ckpt::Commit{1, 2, 3, 4, 5}, out);
  seed(kAck, ckpt::Ack{6, 1}, out);
  seed(kHeartbeat, ckpt::Heartbeat{1, 2}, out);
  seed(kProgress, ckpt::Progress{77}, out);
  seed(kOrder, ckpt::Order{}, out);
  out->add(Bytes{std::byte{kText}, std::byte{'{'}, std::byte{'}'}});
}

REMUSD_FUZZ_TARGET(records, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
