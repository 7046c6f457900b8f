// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/seed.h"

#include <sys/random.h>
#include <xxhash.h>

#include <cstring>
#include <limits>

#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

static_assert(kDigestKeyBytes >= XXH3_SECRET_SIZE_MIN);

constexpr uint32_t kLast = 1;
constexpr uint64_t kPageNumbers = std::numeric_limits<uint64_t>::max() / kPageSize;

void put_runs(const PageSet& runs, Bytes* out) {
  for (const PageRange& run : runs) {
    put(run.first, out);
    put(run.count, out);
  }
}

/// Reads `count` runs; *pages is how many pages they have.
void get_runs(uint32_t count, Cursor* in, PageSet* runs, uint64_t* pages) {
  runs->clear();
  *pages = 0;
  in->require(count <= kMaxSeedPages, "runs", "are too many");
  uint64_t next = 0;
  for (uint32_t i = 0; i < count && in->ok(); ++i) {
    PageRange run;
    run.first = in->get<uint64_t>("first");
    run.count = in->get<uint64_t>("count");
    in->require(run.first >= next && run.first < kPageNumbers, "first", "is out of order");
    in->require(run.count >= 1 && run.count <= kMaxSeedPages - *pages, "count", "is 0 or too large");
    if (!in->ok()) return;
    next = run.first + run.count;
    *pages += run.count;
    runs->push_back(run);
  }
}

}  // namespace

DigestKey make_digest_key() {
  DigestKey key;
  const ssize_t got = ::getrandom(key.data(), key.size(), 0);
  REMUSD_ASSERT(got == static_cast<ssize_t>(key.size()), "192 bytes of randomness are never refused");
  return key;
}

PageDigest digest_of(const DigestKey& key, View bytes) {
  const XXH128_hash_t hash = XXH3_128bits_withSecret(bytes.data(), bytes.size(), key.data(), key.size());
  return {hash.low64, hash.high64};
}

PageDigest digest_at(View digests, size_t index) {
  PageDigest digest;
  REMUSD_ASSERT(index < digests.size() / sizeof digest, "there are not so many digests");
  std::memcpy(&digest, digests.data() + index * sizeof digest, sizeof digest);
  return digest;
}

void encode(const Seed& record, Bytes* out) {
  put(static_cast<uint32_t>(record.runs.size()), out);
  put(record.last ? kLast : uint32_t{0}, out);
  put_bytes(record.key, out);
  put_runs(record.runs, out);
  put_bytes(record.digests, out);
}

Status decode(View body, Seed* record) {
  Cursor in("SEED", body);
  const auto runs = in.get<uint32_t>("runs");
  const auto flags = in.get<uint32_t>("flags");
  in.require((flags & ~kLast) == 0, "flags", "are unknown");
  record->last = flags == kLast;
  if (const View key = in.take(kDigestKeyBytes, "key"); !key.empty())
    std::memcpy(record->key.data(), key.data(), key.size());
  uint64_t pages = 0;
  get_runs(runs, &in, &record->runs, &pages);
  in.require(pages > 0 || record->last, "runs", "are missing");
  record->digests = in.take(pages * sizeof(PageDigest), "digests");
  return in.finish();
}

void encode(const Keep& record, Bytes* out) {
  put(static_cast<uint32_t>(record.runs.size()), out);
  put(uint32_t{0}, out);
  put(record.digest, out);
  put_runs(record.runs, out);
}

Status decode(View body, Keep* record) {
  Cursor in("KEEP", body);
  const auto runs = in.get<uint32_t>("runs");
  in.require(in.get<uint32_t>("reserved") == 0, "reserved", "is not 0");
  record->digest = in.get<PageDigest>("digest");
  uint64_t pages = 0;
  get_runs(runs, &in, &record->runs, &pages);
  in.require(pages > 0, "runs", "are missing");
  return in.finish();
}

}  // namespace remusd::ckpt
