// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Two stores on the test guest's disk that answer only for what is on it: a file of records, and a SQLite
// database in WAL mode. Both number what they are given: 1, 2, ... over reboots.
//
// A store that failed once (the disk refused, or could not be flushed) gives no number any more: nobody knows
// what is on the disk then. Threads: one.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace remusd::guest_service {

class Ledger {
 public:
  virtual ~Ledger() = default;
  /// Stores the id; its number, once it is on the disk.
  virtual std::optional<uint64_t> append(uint64_t id) = 0;
  /// The id that is stored under a number, read from the disk; 0: none.
  virtual uint64_t id_of(uint64_t number) = 0;
  /// How many there are; none when the store is not in order.
  virtual std::optional<uint64_t> check() = 0;
};

/// Appends records of kRecordBytes, each followed by fsync(): a write-ahead log in small. A record is 25
/// little-endian words of 64 bits: its number, its id, 22 words that follow from the number, and the FNV-1a
/// hash of all before it (tests/world/disk_judge.py reads them). They straddle blocks on purpose.
class RecordFile : public Ledger {
 public:
  static constexpr size_t kRecordBytes = 200;

  /// Goes on behind the whole records that are there.
  explicit RecordFile(const std::string& path);
  ~RecordFile() override;
  RecordFile(const RecordFile&) = delete;
  RecordFile& operator=(const RecordFile&) = delete;

  std::optional<uint64_t> append(uint64_t id) override;
  uint64_t id_of(uint64_t number) override;
  std::optional<uint64_t> check() override;

 private:
  int fd_;
  uint64_t records_ = 0;
};

/// Debian's sqlite3, fed through a pipe: each id is a row, inserted in a transaction with synchronous=FULL.
class Database : public Ledger {
 public:
  explicit Database(const std::string& path);

  std::optional<uint64_t> append(uint64_t id) override;
  uint64_t id_of(uint64_t number) override;
  /// PRAGMA integrity_check.
  std::optional<uint64_t> check() override;

 private:
  /// One statement or more; the last line of what they print, none when the program failed and ended.
  std::optional<std::string> run(const std::string& statements);

  FILE* in_ = nullptr;
  FILE* out_ = nullptr;
};

}  // namespace remusd::guest_service
