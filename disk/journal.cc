// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/journal.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>

#include "ckpt/disk_codec.h"
#include "ckpt/scoped_fd.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;
using ckpt::View;

/// Records are gathered to writes of this size: one system call for an ordinary epoch.
constexpr size_t kGatherBytes = 1u << 20;

ReadLog reader_of(Medium& file) {
  return [&file](uint64_t at, std::span<std::byte> out) { return file.read(kJournalLogAt + at, out); };
}

/// The newest epoch of which the log has every record, each of them one that can be applied, and where the
/// log's part that counts ends.
struct Reached {
  uint64_t epoch = 0, position = 0;
};

Result<Reached> last_whole_epoch(const JournalHeader& header, Medium& file) {
  LogScan scan(header, reader_of(file));
  LogScan::Record record;
  Reached reached{header.epoch, header.position};
  uint64_t ignored = 0;
  const std::span<const uint64_t> sizes(header.disk_bytes, header.disks);
  for (;;) {
    REMUSD_ASSIGN(const bool more, scan.next(&record));
    if (!more) break;
    REMUSD_TRY(ckpt::check_disk(record.body, sizes, &ignored).with_context("journal"));
    REMUSD_TRY(ckpt::verify_disk(record.body).with_context("journal"));
    if (record.head.last != 0) reached = {record.head.epoch, scan.position()};
  }
  REMUSD_TRY(scan.check_end());
  return reached;
}

/// What can be read need not be on the medium: the process may have ended before it flushed, or the flush
/// have failed, of which the kernel tells nobody twice. Were power lost in the middle of a replay, the disks
/// would have runs of an epoch that the log has lost. So it is written once more.
Status make_durable(const JournalHeader& header, Medium& file, uint64_t end) {
  Bytes piece;
  for (uint64_t position = header.position; position < end;) {
    const uint64_t at = position % header.log_bytes;
    piece.resize(std::min<uint64_t>({end - position, header.log_bytes - at, kGatherBytes}));
    REMUSD_TRY(file.read(kJournalLogAt + at, piece));
    REMUSD_TRY(file.write(kJournalLogAt + at, piece));
    position += piece.size();
  }
  return file.flush();
}

Status replay(const JournalHeader& header, Medium& file, const Media& disks, uint64_t reached,
              Recovered* recovered) {
  LogScan scan(header, reader_of(file));
  LogScan::Record record;
  while (recovered->epoch < reached) {
    REMUSD_ASSIGN(const bool more, scan.next(&record));
    if (!more) return {Code::corrupt, "journal: it does not read the same twice"};
    REMUSD_TRY(ckpt::apply_disk(record.body, [&](const ckpt::DiskRun& run) {
      recovered->replayed_bytes += run.bytes;
      return write_run(*disks[run.disk], run);
    }));
    if (record.head.last == 0) continue;
    ++recovered->replayed_epochs;
    recovered->epoch = record.head.epoch;
    recovered->generation = record.head.generation;
  }
  return {};
}

}  // namespace

Status make_journal_file(const std::string& path, uint64_t bytes) {
  if (bytes < kMinJournalBytes || bytes > kMaxJournalBytes)
    return {Code::invalid,
            "journal " + path + ": " + std::to_string(bytes) + " bytes are not within 64 KiB to 16 GiB"};
  const uint64_t rounded = (bytes + kJournalBlockBytes - 1) & ~(kJournalBlockBytes - 1);
  REMUSD_TRY(make_whole_file(path, rounded).with_context("journal"));
  // An older one may be smaller. Where it cannot grow, large epochs have no place in it: fits().
  const ScopedFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  struct stat info {};
  if (file && ::fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode) &&
      static_cast<uint64_t>(info.st_size) < rounded)
    (void)::posix_fallocate(file.get(), 0, static_cast<off_t>(rounded));
  return {};
}

Result<JournalHeader> look_at_journal(Medium& file) {
  if (file.bytes() < kMinJournalBytes)
    return Status(Code::invalid, "journal: the file is shorter than 64 KiB");
  Bytes slots(kJournalLogAt);
  REMUSD_TRY(file.read(0, slots));
  const View view(slots);
  return newest_header(view.first(kJournalBlockBytes), view.subspan(kJournalBlockBytes), file.bytes())
      .value_or(JournalHeader{});
}

Status recover(Medium& file, const Media& disks, Recovered* recovered) {
  *recovered = {};
  const std::vector<uint64_t> sizes = sizes_of(disks);
  REMUSD_ASSIGN(const JournalHeader header, look_at_journal(file));
  recovered->state = static_cast<ReplicaState>(header.state);
  recovered->epoch = header.epoch;
  recovered->generation = header.generation;
  std::copy(std::begin(header.session), std::end(header.session), recovered->session.begin());
  if (recovered->state != ReplicaState::consistent) return {};
  if (!std::equal(sizes.begin(), sizes.end(), header.disk_bytes, header.disk_bytes + header.disks,
                  std::greater_equal<>()))
    return {Code::invalid, "journal: the guest's disks are not the ones that it is for, or smaller"};
  REMUSD_ASSIGN(const Reached reached, last_whole_epoch(header, file));
  REMUSD_TRY(make_durable(header, file, reached.position));
  REMUSD_TRY(replay(header, file, disks, reached.epoch, recovered));
  REMUSD_TRY(flush_all(disks));
  REMUSD_ASSIGN(Journal journal, Journal::open(file, sizes));
  return journal.start(recovered->session, recovered->epoch, recovered->generation);
}

Result<Journal> Journal::open(Medium& file, std::span<const uint64_t> disk_bytes) {
  REMUSD_ASSERT(!disk_bytes.empty() && disk_bytes.size() <= ckpt::kMaxDisks, "a guest has so many disks");
  REMUSD_ASSIGN(JournalHeader header, look_at_journal(file));
  // Of a header that is there only its numbers go on; the rest is what comes next.
  header.disks = static_cast<uint32_t>(disk_bytes.size());
  std::fill(std::begin(header.disk_bytes), std::end(header.disk_bytes), 0);
  std::copy(disk_bytes.begin(), disk_bytes.end(), header.disk_bytes);
  const uint64_t room = std::min(file.bytes(), kMaxJournalBytes) - kJournalLogAt;
  header.log_bytes = room / kJournalBlockBytes * kJournalBlockBytes;
  return Journal(file, header);
}

Status Journal::write_header() {
  ++header_.serial;
  const uint64_t slot = header_.serial % 2;
  REMUSD_TRY(file_->write(slot * kJournalBlockBytes, encode_header(header_)));
  return file_->flush();
}

Status Journal::write_state(ReplicaState state, uint64_t epoch, uint64_t generation) {
  header_.state = static_cast<uint32_t>(state);
  header_.epoch = epoch;
  header_.generation = generation;
  ++header_.log;  // what any older log has is not of this one
  if (::getrandom(&header_.salt, sizeof header_.salt, 0) != sizeof header_.salt)
    return Status::from_errno("get a random number");
  begun_ = true;
  header_.position = position_ = flushed_ = written_ = 0;
  buffer_.clear();
  // Twice: the state before it must not come back when one block goes bad.
  REMUSD_TRY(write_header());
  return write_header();
}

Status Journal::mark_inconsistent(const ckpt::SessionId& session, uint64_t generation) {
  std::copy(session.begin(), session.end(), header_.session);
  return write_state(ReplicaState::inconsistent, 0, generation);
}

Status Journal::start(const ckpt::SessionId& session, uint64_t epoch, uint64_t generation) {
  std::copy(session.begin(), session.end(), header_.session);
  return write_state(ReplicaState::consistent, epoch, generation);
}

Status Journal::release(uint64_t epoch, uint64_t generation) {
  return write_state(ReplicaState::released, epoch, generation);
}

Status Journal::advance(uint64_t epoch, uint64_t generation, uint64_t position) {
  REMUSD_ASSERT(begun_ && state() == ReplicaState::consistent, "there is a log, and it is ours");
  REMUSD_ASSERT(position >= header_.position && position <= flushed_, "only what is durable can have gone");
  header_.epoch = epoch;
  header_.generation = generation;
  header_.position = position;
  return write_header();
}

Status Journal::append(uint64_t epoch, uint64_t generation, std::span<const Bytes> bodies) {
  REMUSD_ASSERT(begun_ && state() == ReplicaState::consistent, "there is a log, and it is ours");
  REMUSD_ASSERT(!bodies.empty() && has_room(epoch_bytes(bodies)), "the caller makes room");
  for (const Bytes& body : bodies) {
    RecordHead head;
    head.log = header_.log;
    head.position = position_;
    head.epoch = epoch;
    head.generation = generation;
    head.flushed = flushed_;
    head.header_serial = header_.serial;
    head.index = static_cast<uint32_t>(&body - bodies.data());
    head.last = &body == &bodies.back() ? 1 : 0;
    encode_record(head, header_.salt, body, &buffer_);
    position_ = record_end(position_, body.size(), head.last != 0);
    if (buffer_.size() >= kGatherBytes) REMUSD_TRY(write_out());
  }
  return {};
}

Status Journal::write_out() {
  View rest(buffer_);
  while (!rest.empty()) {
    const uint64_t at = written_ % header_.log_bytes;
    const View now = rest.first(std::min<uint64_t>(rest.size(), header_.log_bytes - at));
    REMUSD_TRY(file_->write(kJournalLogAt + at, now));
    rest = rest.subspan(now.size());
    written_ += now.size();
    written_bytes_ += now.size();
  }
  buffer_.clear();
  return {};
}

Status Journal::flush() {
  REMUSD_TRY(write_out());
  REMUSD_TRY(file_->flush());
  flushed_ = position_;
  return {};
}

}  // namespace remusd::disk
