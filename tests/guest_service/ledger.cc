// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/guest_service/ledger.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "tests/guest_service/hash.h"

namespace remusd::guest_service {
namespace {

constexpr size_t kWords = RecordFile::kRecordBytes / sizeof(uint64_t);
using Record = std::array<uint64_t, kWords>;

Record make_record(uint64_t number, uint64_t id) {
  Record record{number, id};
  for (size_t word = 2; word + 1 < kWords; ++word) record[word] = number * 0x9e3779b97f4a7c15U + word;
  record.back() = hash(kHashStart, record.data(), sizeof record - sizeof(uint64_t));
  return record;
}

uint64_t number_in(const std::string& text) {
  return std::strtoull(text.c_str(), nullptr, 10);
}

}  // namespace

RecordFile::RecordFile(const std::string& path)
    : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  struct stat info {};
  if (fd_ < 0 || fstat(fd_, &info) != 0) {
    std::perror(path.c_str());
    return;
  }
  records_ = static_cast<uint64_t>(info.st_size) / kRecordBytes;
  // The end of a record that nobody was told of.
  if (ftruncate(fd_, static_cast<off_t>(records_ * kRecordBytes)) != 0) std::perror(path.c_str());
}

RecordFile::~RecordFile() {
  if (fd_ >= 0) close(fd_);
}

std::optional<uint64_t> RecordFile::append(uint64_t id) {
  if (fd_ < 0) return {};
  const Record record = make_record(records_ + 1, id);
  const auto offset = static_cast<off_t>(records_ * kRecordBytes);
  if (pwrite(fd_, record.data(), sizeof record, offset) != sizeof record || fsync(fd_) != 0) {
    std::perror("remusd-guest: records");
    close(fd_);
    fd_ = -1;
    return {};
  }
  return ++records_;
}

uint64_t RecordFile::id_of(uint64_t number) {
  Record record{};
  if (fd_ < 0 || number == 0 || number > records_) return 0;
  const auto offset = static_cast<off_t>((number - 1) * kRecordBytes);
  posix_fadvise(fd_, offset, sizeof record, POSIX_FADV_DONTNEED);  // From the disk, not from memory.
  if (pread(fd_, record.data(), sizeof record, offset) != sizeof record) return 0;
  return record == make_record(number, record[1]) ? record[1] : 0;
}

std::optional<uint64_t> RecordFile::check() {
  for (uint64_t number = 1; number <= records_; ++number) {
    if (id_of(number) == 0) return {};
  }
  return fd_ < 0 ? std::nullopt : std::optional(records_);
}

Database::Database(const std::string& path) {
  std::signal(SIGPIPE, SIG_IGN);  // It may end.
  std::array<int, 2> to{}, from{};
  if (pipe2(to.data(), O_CLOEXEC) != 0 || pipe2(from.data(), O_CLOEXEC) != 0) {
    std::perror("pipe");
    return;
  }
  const pid_t child = fork();
  if (child == 0) {
    dup2(to[0], 0);
    dup2(from[1], 1);
    // It ends at the first error.
    execl("/usr/bin/sqlite3", "sqlite3", "-batch", "-bail", path.c_str(), nullptr);
    std::perror("/usr/bin/sqlite3");
    _exit(127);
  }
  close(to[0]);
  close(from[1]);
  in_ = fdopen(to[1], "w");
  out_ = fdopen(from[0], "r");
  (void)run(
      "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=10000;\n"
      "CREATE TABLE IF NOT EXISTS ledger "
      "(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, more TEXT);");
}

std::optional<std::string> Database::run(const std::string& statements) {
  if (in_ == nullptr || out_ == nullptr) return {};
  // What follows is printed only if all before it succeeded.
  std::fprintf(in_, "%s\nSELECT 'end';\n", statements.c_str());
  std::string last;
  std::array<char, 256> line{};
  if (std::fflush(in_) == 0) {
    while (std::fgets(line.data(), line.size(), out_) != nullptr) {
      if (std::strcmp(line.data(), "end\n") == 0) return last;
      last = line.data();
    }
  }
  std::puts("remusd-guest: sqlite3 ended");
  std::fclose(in_);
  in_ = nullptr;
  return {};
}

std::optional<uint64_t> Database::append(uint64_t id) {
  const auto number = run("BEGIN; INSERT INTO ledger (id, more) VALUES ('" + std::to_string(id) +
                          "', hex(randomblob(60))); COMMIT; SELECT last_insert_rowid();");
  return number ? std::optional(number_in(*number)) : std::nullopt;
}

uint64_t Database::id_of(uint64_t number) {
  return number_in(run("SELECT id FROM ledger WHERE number = " + std::to_string(number) + ";").value_or(""));
}

std::optional<uint64_t> Database::check() {
  if (run("PRAGMA integrity_check;") != "ok\n") return {};
  return number_in(run("SELECT count(*) FROM ledger;").value_or(""));
}

}  // namespace remusd::guest_service
