// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/journal_format.h"

#define XXH_STATIC_LINKING_ONLY  // for a hash state on the stack
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "ckpt/wire.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;
using ckpt::View;

constexpr uint64_t kHeaderMagic = 0x314c4e524a4d4552;  // "REMJRNL1"
constexpr uint32_t kHeaderVersion = 1;
constexpr uint32_t kRecordMagic = 0x31434552;  // "REC1"
constexpr uint64_t kSearchBytes = 256u << 10;

uint64_t round_up(uint64_t value, uint64_t to) {
  return (value + to - 1) / to * to;
}

uint64_t checksum_of(RecordHead head, uint64_t salt, View body) {
  head.checksum = 0;
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, salt);
  XXH3_64bits_update(&state, &head, sizeof head);
  XXH3_64bits_update(&state, body.data(), body.size());
  return XXH3_64bits_digest(&state);
}

Status bad(const char* why) {
  return {Code::corrupt, std::string("journal header: ") + why};
}

}  // namespace

uint64_t record_end(uint64_t position, uint64_t body_bytes, bool last) {
  return round_up(position + sizeof(RecordHead) + body_bytes, last ? kJournalBlockBytes : 8);
}

uint64_t epoch_bytes(std::span<const Bytes> bodies) {
  uint64_t end = 0;
  for (const Bytes& body : bodies) end = record_end(end, body.size(), &body == &bodies.back());
  return end;
}

Bytes encode_header(JournalHeader header) {
  header.magic = kHeaderMagic;
  header.version = kHeaderVersion;
  header.checksum = XXH3_64bits(&header, offsetof(JournalHeader, checksum));
  Bytes block;
  ckpt::put(header, &block);
  block.resize(kJournalBlockBytes);
  return block;
}

void encode_record(RecordHead head, uint64_t salt, View body, Bytes* out) {
  head.magic = kRecordMagic;
  head.body_bytes = static_cast<uint32_t>(body.size());
  head.checksum = checksum_of(head, salt, body);
  const uint64_t end = record_end(head.position, body.size(), head.last != 0);
  const size_t whole = out->size() + (end - head.position);
  ckpt::put(head, out);
  ckpt::put_bytes(body, out);
  out->resize(whole);
}

Status decode_header(View block, uint64_t file_bytes, JournalHeader* header) {
  if (block.size() < sizeof *header) return bad("is cut off");
  std::memcpy(header, block.data(), sizeof *header);
  if (header->magic != kHeaderMagic) return bad("has another magic");
  if (header->checksum != XXH3_64bits(header, offsetof(JournalHeader, checksum)))
    return bad("has a wrong checksum");
  if (header->version != kHeaderVersion) return bad("has another version");
  if (header->state < 1 || header->state > 3) return bad("has an unknown state");
  if (header->disks < 1 || header->disks > ckpt::kMaxDisks) return bad("has a wrong number of disks");
  if (header->log_bytes < kJournalBlockBytes || header->log_bytes % kJournalBlockBytes != 0 ||
      header->log_bytes > kMaxJournalBytes || header->log_bytes + kJournalLogAt > file_bytes)
    return bad("has a log that the file has no room for");
  if (header->position % kJournalBlockBytes != 0 || header->position > UINT64_MAX / 2)
    return bad("has a log that begins nowhere");
  return {};
}

std::optional<JournalHeader> newest_header(View even, View odd, uint64_t file_bytes) {
  std::optional<JournalHeader> newest;
  for (uint64_t slot = 0; slot < 2; ++slot) {
    JournalHeader header;
    if (!decode_header(slot == 0 ? even : odd, file_bytes, &header).ok()) continue;
    if (header.serial % 2 != slot) continue;
    if (!newest || header.serial > newest->serial) newest = header;
  }
  return newest;
}

Status LogScan::read_at(uint64_t position, std::span<std::byte> out) const {
  while (!out.empty()) {
    const uint64_t at = position % header_.log_bytes;
    const auto now = static_cast<size_t>(std::min<uint64_t>(out.size(), header_.log_bytes - at));
    REMUSD_TRY(read_(at, out.first(now)));
    out = out.subspan(now);
    position += now;
  }
  return {};
}

/// The head of a record that may come next; its body is yet to be looked at.
bool LogScan::follows(const RecordHead& head) const {
  if (head.magic != kRecordMagic || head.log != header_.log || head.position != position_) return false;
  if (head.body_bytes > ckpt::kMaxBodyBytes || head.last > 1 || head.index != index_) return false;
  if (index_ == 0 ? head.epoch <= epoch_ : head.epoch != epoch_ || head.generation != generation_)
    return false;
  return record_end(position_, head.body_bytes, head.last != 0) - header_.position <= header_.log_bytes;
}

Result<bool> LogScan::next(Record* record) {
  if (position_ - header_.position + sizeof(RecordHead) > header_.log_bytes) return false;
  RecordHead& head = record->head;
  REMUSD_TRY(read_at(position_, std::as_writable_bytes(std::span(&head, 1))));
  if (!follows(head)) return false;
  record->body.resize(head.body_bytes);
  REMUSD_TRY(read_at(position_ + sizeof head, record->body));
  if (head.checksum != checksum_of(head, header_.salt, record->body)) return false;
  position_ = record_end(position_, head.body_bytes, head.last != 0);
  epoch_ = head.epoch;
  generation_ = head.generation;
  index_ = head.last != 0 ? 0 : index_ + 1;
  return true;
}

Status LogScan::check_end() {
  // An epoch that began whole and has no end is torn at its beginning as well as where it stops. Records that
  // were written later begin a block, and only the heads of those can be found.
  const uint64_t end = header_.position + header_.log_bytes;
  Bytes window;
  uint64_t from = round_up(position_, kJournalBlockBytes);
  if (from == position_) from += kJournalBlockBytes;
  for (; from < end; from += kSearchBytes) {
    window.resize(static_cast<size_t>(std::min(kSearchBytes, end - from)));
    REMUSD_TRY(read_at(from, window));
    for (size_t at = 0; at < window.size(); at += kJournalBlockBytes) {
      RecordHead head;
      std::memcpy(&head, window.data() + at, sizeof head);
      if (head.magic != kRecordMagic || head.log != header_.log || head.position != from + at) continue;
      if (head.body_bytes > std::min<uint64_t>(ckpt::kMaxBodyBytes, header_.log_bytes - sizeof head))
        continue;
      Bytes body(head.body_bytes);
      REMUSD_TRY(read_at(head.position + sizeof head, body));
      if (head.checksum != checksum_of(head, header_.salt, body)) continue;
      if (head.flushed > position_)
        return {Code::corrupt, "journal: what was durable at position " + std::to_string(position_) +
                                   " of its log is damaged"};
      if (head.header_serial > header_.serial)
        return {Code::corrupt, "journal: its newest header is damaged"};
    }
  }
  return {};
}

}  // namespace remusd::disk
