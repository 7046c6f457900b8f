// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What makes the replica's disks exactly one epoch after the backup has lost power.
//
// An epoch's runs come without the order in which the guest made them: each byte comes once, however often it
// was written. So there is no order of writing to the disks that would be safe to be cut anywhere, as there
// is for a guest's own writes with its flushes between them: an epoch must be on the disks whole or not at
// all. Hence a write-ahead log: an epoch is appended and flushed before its first run is written to a disk.
// When the disks have been flushed, what they hold leaves the log. After a loss of power the log is replayed
// over the disks; runs are absolute, so that replaying one that is there already changes nothing.
//
//   none --mark_inconsistent()--> inconsistent --start()--> consistent --release()--> released
//                                      ^----------------------- any of them, by a new first sync
//
// What always holds, under any loss of power, when those that call keep to the order above:
//   - consistent: the disks with the log replayed are exactly one epoch, the newest that flush() covered, or
//     a later one that was appended;
//   - a state counts when the call that made it has returned, and not before it began.
//
// A medium that fails, or lies about flushing, is told apart from a loss of power where that can be seen
// (journal_format.h); then the disks are nobody's state, and recover() says so.
//
// Bounds: the file keeps its size. An epoch that is larger than the log has no place in it: see fits().
//
// Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "disk/journal_format.h"
#include "disk/medium.h"

namespace remusd::disk {

/// Makes the file when it is missing, with room for all of it, rounded up to a block; one that is there keeps
/// its content, and grows where it can. The directory is flushed, too.
Status make_journal_file(const std::string& path, uint64_t bytes);

/// What stands in the header; `none` when there is no header. Nothing is written.
Result<JournalHeader> look_at_journal(Medium& file);

struct Recovered {
  ReplicaState state = ReplicaState::none;
  uint64_t epoch = 0;  // consistent: what the disks are now; epochs without a change after it are not counted
  uint64_t generation = 0;
  ckpt::SessionId session{};
  uint64_t replayed_epochs = 0, replayed_bytes = 0;
};

/// Brings the disks to the last whole epoch of the log, flushes them, and empties the log. Does nothing to
/// disks that are not consistent. May be repeated after it was cut off anywhere.
/// `corrupt`: the log is damaged, the disks are nobody's state; `invalid`: a disk is smaller than it was, or
/// there are more or fewer (one that was made larger since is as good); else the first failure of a medium.
/// Only for disks on which no guest runs. When a guest was promoted here and release() had not returned, then
/// replaying after a loss of power is right: whatever the guest wrote since it had not been told to be
/// durable. After the end of this process alone it is not: the guest may live, and has read what it wrote.
/// Whoever finds it alive removes the journal's file instead.
Status recover(Medium& file, const Media& disks, Recovered* recovered);

class Journal {
 public:
  /// Reads the header. The file and the sizes belong to the caller; the file outlives it.
  static Result<Journal> open(Medium& file, std::span<const uint64_t> disk_bytes);

  const JournalHeader& header() const { return header_; }
  ReplicaState state() const { return static_cast<ReplicaState>(header_.state); }

  // All durable when they return ok. After a failure of any call nothing may be called any more: what was
  // written is not known.

  /// The log counts no longer. Before the first byte of a first sync.
  Status mark_inconsistent(const ckpt::SessionId& session, uint64_t generation);
  /// The disks, flushed, are `epoch`. An empty log begins.
  Status start(const ckpt::SessionId& session, uint64_t epoch, uint64_t generation);
  /// The disks, flushed, hold everything up to `epoch`, and what the log has up to `position` can go.
  Status advance(uint64_t epoch, uint64_t generation, uint64_t position);
  /// The disks, flushed, hold `epoch`, and belong to the guest from now on.
  Status release(uint64_t epoch, uint64_t generation);

  /// Whether an epoch of so many bytes (epoch_bytes()) can be appended at all, and now.
  bool fits(uint64_t bytes) const { return bytes <= header_.log_bytes; }
  bool has_room(uint64_t bytes) const { return bytes <= header_.log_bytes - live_bytes(); }
  /// Not durable before flush(). REQUIRES: consistent, has_room(), bodies, epochs rise.
  Status append(uint64_t epoch, uint64_t generation, std::span<const ckpt::Bytes> bodies);
  Status flush();

  /// Behind what was appended last.
  uint64_t position() const { return position_; }
  uint64_t live_bytes() const { return position_ - header_.position; }
  uint64_t log_bytes() const { return header_.log_bytes; }
  uint64_t written_bytes() const { return written_bytes_; }

 private:
  Journal(Medium& file, const JournalHeader& header) : file_(&file), header_(header) {}
  Status write_header();
  Status write_state(ReplicaState state, uint64_t epoch, uint64_t generation);
  Status write_out();

  Medium* file_;
  bool begun_ = false;    // what the header says is of this object
  JournalHeader header_;  // the newest that was written
  uint64_t position_ = 0, flushed_ = 0;
  uint64_t written_ = 0;  // position up to which buffer_ was written out
  uint64_t written_bytes_ = 0;
  ckpt::Bytes buffer_;  // at most a body and kGather
};

}  // namespace remusd::disk
