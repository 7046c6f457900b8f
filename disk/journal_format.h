// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The journal's file, as bytes. Pure: reading is a function that is handed in. All integers little-endian.
//
//   0            4096         8192                                   file's size, rounded down to 4096
//   +------------+------------+--------------------------------------+
//   | header     | header     | log: log_bytes, a ring               |
//   | (even)     | (odd)      | position p lies at 8192 + p % log_bytes
//   +------------+------------+--------------------------------------+
//
// A header with serial s lies in slot s % 2, so that writing one never harms the other; the newer one counts.
// A change of state is written to both. The log is a sequence of records, each a RecordHead and a DISK body,
// padded to 8 bytes. The records of one epoch follow each other, index 0 first, `last` set in the last; an
// epoch begins at a multiple of 4096, so that no block with a durable epoch is ever written again. A record
// names its log and its position: what is left from earlier laps and logs is never taken for one, nor what a
// guest writes, since it does not know the log's salt.
//
// The log ends at the first record that is torn. Whether power was lost in the middle of a write (which is
// what the journal is for) or something that had been durable was damaged (then the disks hold more than the
// log can tell, and are nobody's state) is told apart by what later records say: `flushed`, the position up
// to which the log was durable when they were written, and `header_serial`, the header that was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "ckpt/format.h"
#include "ckpt/records.h"
#include "ckpt/status.h"

namespace remusd::disk {

inline constexpr uint64_t kJournalBlockBytes = 4096;
inline constexpr uint64_t kJournalLogAt = 2 * kJournalBlockBytes;
inline constexpr uint64_t kMinJournalBytes = 64u << 10;
inline constexpr uint64_t kMaxJournalBytes = uint64_t{16} << 30;

/// What the disks beside a journal are.
enum class ReplicaState : uint32_t {
  none = 0,          // no journal was ever begun here
  inconsistent = 1,  // a first sync began and was not committed: nobody's state
  consistent = 2,    // with the journal replayed: exactly one epoch
  released = 3,      // the guest has had them since: whatever it wrote; there is nothing to replay
};

struct JournalHeader {
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t state = 0;       // ReplicaState
  uint64_t serial = 0;      // of this header, rising
  uint64_t epoch = 0;       // durable in the disks; the log begins behind it
  uint64_t generation = 0;  // of that epoch
  uint8_t session[16] = {};
  uint64_t salt = 0;      // random, of this log; seed of its records' checksums
  uint64_t log = 0;       // number of this log
  uint64_t position = 0;  // where its first record is
  uint64_t log_bytes = 0;
  uint32_t disks = 0;
  uint32_t reserved = 0;
  uint64_t disk_bytes[ckpt::kMaxDisks] = {};
  uint64_t checksum = 0;  // XXH3-64 of all before
};
static_assert(sizeof(JournalHeader) == 232);

struct RecordHead {
  uint32_t magic = 0;
  uint32_t body_bytes = 0;
  uint64_t log = 0;
  uint64_t position = 0;
  uint64_t epoch = 0;
  uint64_t generation = 0;
  uint64_t flushed = 0;
  uint64_t header_serial = 0;
  uint32_t index = 0;     // among the epoch's records
  uint32_t last = 0;      // 1 in the last of them
  uint64_t checksum = 0;  // XXH3-64, seeded with the salt, of the head with this 0, then the body
};
static_assert(sizeof(RecordHead) == 72);

/// Where a record that begins at `position` ends, its padding included.
uint64_t record_end(uint64_t position, uint64_t body_bytes, bool last);
/// What an epoch takes in the log.
uint64_t epoch_bytes(std::span<const ckpt::Bytes> bodies);

/// One block. Fills in magic, version and checksum.
ckpt::Bytes encode_header(JournalHeader header);
/// Appends head, body and padding; magic, body_bytes and checksum are filled in.
void encode_record(RecordHead head, uint64_t salt, ckpt::View body, ckpt::Bytes* out);
/// `corrupt` unless the block holds a header that we could have written into a file of `file_bytes`.
Status decode_header(ckpt::View block, uint64_t file_bytes, JournalHeader* header);
/// The header that counts; nullopt when neither slot has one. REQUIRES: a block each.
std::optional<JournalHeader> newest_header(ckpt::View even, ckpt::View odd, uint64_t file_bytes);

/// Reads out.size() bytes at a place of the ring (position % log_bytes); never asked beyond its end.
using ReadLog = std::function<Status(uint64_t at, std::span<std::byte> out)>;

/// Walks the records behind a header in order.
class LogScan {
 public:
  LogScan(const JournalHeader& header, ReadLog read) : header_(header), read_(std::move(read)) {
    epoch_ = header.epoch;
    position_ = header.position;
  }

  struct Record {
    RecordHead head;
    ckpt::Bytes body;
  };
  /// False: the log ends here. A failure is one of reading.
  Result<bool> next(Record* record);
  /// Where the next record would be.
  uint64_t position() const { return position_; }
  /// After next() was false: `corrupt` when something lies behind the end that was written after the end had
  /// been durable, or after a newer header.
  Status check_end();

 private:
  Status read_at(uint64_t position, std::span<std::byte> out) const;
  bool follows(const RecordHead& head) const;

  JournalHeader header_;
  ReadLog read_;
  uint64_t position_ = 0;
  uint64_t epoch_ = 0;  // of the record before
  uint32_t index_ = 0;  // that comes next; 0: a new epoch
  uint64_t generation_ = 0;
};

}  // namespace remusd::disk
