// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The replica's journal as it may lie on a disk. The first byte chooses: a log as it may be, records that are
// made whole with whatever fields, and then damaged, or two header blocks.
#include <array>

#include "disk/journal_format.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using disk::JournalHeader;
using disk::LogScan;
using disk::RecordHead;

constexpr uint64_t kLogBytes = 4 * disk::kJournalBlockBytes;
constexpr uint64_t kSalt = 0x5a17;
constexpr uint64_t kLog = 3;
constexpr int kMostRecords = 24;
using Log = std::array<std::byte, kLogBytes>;

Log& log_memory() {
  static Log log;
  return log;
}

disk::ReadLog reader() {
  return [](uint64_t at, std::span<std::byte> out) -> Status {
    REMUSD_ASSERT(at < kLogBytes && out.size() <= kLogBytes - at, "reads lie within the log");
    std::memcpy(out.data(), log_memory().data() + at, out.size());
    return {};
  };
}

/// Round the end of the ring, in at most two pieces.
void write_log(uint64_t position, View bytes) {
  const uint64_t at = position % kLogBytes;
  const View tail = bytes.first(std::min<uint64_t>(bytes.size(), kLogBytes - at));
  std::memcpy(log_memory().data() + at, tail.data(), tail.size());
  std::memcpy(log_memory().data(), bytes.data() + tail.size(), bytes.size() - tail.size());
}

JournalHeader header_at(uint64_t position) {
  JournalHeader header;
  header.state = 2;
  header.serial = 10;
  header.epoch = 5;
  header.salt = kSalt;
  header.log = kLog;
  header.position = position;
  header.log_bytes = kLogBytes;
  header.disks = 1;
  header.disk_bytes[0] = 512;
  return header;
}

/// Walks to the end, and returns how many records there were.
template <typename Function>
int scan(const JournalHeader& header, Function each) {
  LogScan walk(header, reader());
  LogScan::Record record;
  int count = 0;
  uint64_t before = header.position, epoch = header.epoch;
  for (;; ++count) {
    const auto more = walk.next(&record);
    REMUSD_ASSERT(more.ok(), "reading does not fail");
    if (!*more) break;
    REMUSD_ASSERT(record.head.position == before && walk.position() > before, "records follow each other");
    REMUSD_ASSERT(walk.position() - header.position <= kLogBytes, "none is met twice");
    REMUSD_ASSERT(record.head.epoch >= epoch && record.body.size() == record.head.body_bytes, "epochs rise");
    before = walk.position();
    epoch = record.head.epoch;
    each(count, record);
  }
  if (const Status status = walk.check_end(); !status.ok()) require_reason(status);
  return count;
}

void run_log(Input input) {
  const uint64_t position = input.number() * disk::kJournalBlockBytes;
  log_memory().fill(std::byte{0});
  uint64_t at = 0;
  while (!input.empty() && at < kLogBytes) {
    const View chunk = input.take(kLogBytes - at);
    std::copy(chunk.begin(), chunk.end(), log_memory().begin() + static_cast<ptrdiff_t>(at));
    at += chunk.size();
  }
  scan(header_at(position), [](int, const LogScan::Record&) {});
}

/// Records with right checksums: those up to the first that does not follow are found, and no other.
void run_records(Input input) {
  const JournalHeader header = header_at(input.number() * disk::kJournalBlockBytes);
  log_memory().fill(std::byte{0});
  uint64_t position = header.position, epoch = header.epoch, generation = 0;
  uint32_t index = 0;
  bool whole = true;
  int expected = 0;
  std::vector<Bytes> bodies;
  for (int i = 0; i < kMostRecords && !input.empty(); ++i) {
    const uint8_t what = input.number();
    RecordHead head;
    head.log = kLog;
    head.position = position;
    head.epoch = index == 0 ? epoch + 1 + (what & 1) : epoch;
    head.generation = index == 0 ? what & 3 : generation;
    head.index = index;
    head.last = (what >> 2) & 1;
    const View body = input.chunk();
    const uint64_t end = disk::record_end(position, body.size(), head.last != 0);
    if (end - header.position > kLogBytes) break;
    bool right = true;
    switch (what >> 4) {  // Most are as they should be.
      case 0:
        head.log += 1 + input.number();
        right = false;
        break;
      case 1:
        head.index += 1 + input.number();
        right = false;
        break;
      case 2:
        head.epoch -= 1 + input.number() % 2;
        right = index == 0 && head.epoch > epoch;
        break;
      case 3:
        head.position += kLogBytes * (1 + input.number());
        right = false;
        break;
      default:
        break;
    }
    Bytes bytes;
    RecordHead placed = head;
    disk::encode_record(placed, kSalt + (what >> 4 == 4 ? 1 : 0), body, &bytes);
    right = right && what >> 4 != 4;
    if (what >> 4 == 5) {
      const auto place = input.number<uint16_t>() % (sizeof head + body.size());
      bytes[place] ^= std::byte{1};
      right = false;
    }
    write_log(position, View(bytes).first(std::min<uint64_t>(end - position, bytes.size())));
    whole = whole && right;
    if (whole) {
      ++expected;
      bodies.emplace_back(body.begin(), body.end());
    }
    position = end;
    epoch = head.epoch;
    generation = head.generation;
    index = head.last != 0 ? 0 : index + 1;
    if (!right) break;
  }
  const int found = scan(header, [&](int number, const LogScan::Record& record) {
    REMUSD_ASSERT(number < expected && same(record.body, bodies[static_cast<size_t>(number)]),
                  "what is found was written");
  });
  REMUSD_ASSERT(found == expected, "all that follow are found");
}

void run_headers(Input input) {
  const uint64_t file_bytes = input.number<uint32_t>();
  std::array<Bytes, 2> slots;
  uint64_t best = 0;
  for (uint64_t slot = 0; slot < 2; ++slot) {
    JournalHeader header = header_at(input.number() * disk::kJournalBlockBytes);
    header.serial = input.number();
    header.state = input.number() % 5;
    header.disks = input.number() % 20;
    header.log_bytes = input.number<uint16_t>() * uint64_t{512};
    slots[slot] = disk::encode_header(header);
    const View damage = input.chunk();
    for (size_t i = 0; i < std::min(damage.size(), sizeof header); ++i) slots[slot][i] ^= damage[i];
    const bool damaged = std::any_of(
        damage.begin(), damage.begin() + static_cast<ptrdiff_t>(std::min(damage.size(), sizeof header)),
        [](std::byte byte) { return byte != std::byte{0}; });
    JournalHeader decoded;
    const Status status = disk::decode_header(slots[slot], file_bytes, &decoded);
    if (!status.ok()) {
      require_reason(status);
      continue;
    }
    REMUSD_ASSERT(!damaged, "damage is seen");
    REMUSD_ASSERT(decoded.disks >= 1 && decoded.disks <= ckpt::kMaxDisks && decoded.state >= 1 &&
                      decoded.log_bytes + disk::kJournalLogAt <= file_bytes,
                  "what is taken can be worked with");
    if (decoded.serial % 2 == slot) best = std::max(best, decoded.serial + 1);
  }
  const auto newest = disk::newest_header(slots[0], slots[1], file_bytes);
  REMUSD_ASSERT(newest.has_value() == (best > 0) && (!newest || newest->serial + 1 == best),
                "the newest counts");
}

void run(View bytes) {
  Input input(bytes);
  switch (input.number() % 3) {
    case 0:
      return run_log(input);
    case 1:
      return run_records(input);
    default:
      return run_headers(input);
  }
}

void seeds(Seeds* out) {
  // A log of two epochs.
  for (const auto at : std::to_array<uint8_t>({0, 3})) {
    Bytes log{std::byte{0}, static_cast<std::byte>(at)};
    RecordHead head;
    head.log = kLog;
    head.position = at * disk::kJournalBlockBytes;
    head.epoch = 6;
    disk::encode_record(head, kSalt, Bytes(40, std::byte{1}), &log);
    head.position = disk::record_end(head.position, 40, false);
    head.index = head.last = 1;
    disk::encode_record(head, kSalt, Bytes(60, std::byte{2}), &log);
    out->add(log);
  }
  for (const auto odd : std::to_array<uint8_t>({0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60})) {
    Bytes records{std::byte{1}, std::byte{2}};
    for (const uint8_t what : {uint8_t{0x60}, uint8_t{0x64}, uint8_t{0x65}, odd}) {
      put_number(what, &records);
      put_chunk(Bytes(30, std::byte{7}), &records);
    }
    put_number(uint16_t{9}, &records);
    out->add(records);
  }
  Bytes headers{std::byte{2}};
  put_number(uint32_t{1u << 20}, &headers);
  for (const auto serial : std::to_array<uint8_t>({6, 7})) {
    for (const uint8_t field : {uint8_t{1}, serial, uint8_t{2}, uint8_t{2}}) put_number(field, &headers);
    put_number(uint16_t{64}, &headers);
    put_chunk(Bytes(), &headers);
  }
  out->add(headers);
}

REMUSD_FUZZ_TARGET(journal, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
