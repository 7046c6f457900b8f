// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a guest does to its disks, and who is told of it: the seam between the NBD server, which carries
// requests out on local files, and output commit, which gives each change to an epoch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ckpt/format.h"

namespace remusd::disk {

/// Bounds of what one guest may have.
inline constexpr size_t kMaxDisks = ckpt::kMaxDisks;
inline constexpr uint64_t kMaxDiskBytes = uint64_t{16} << 40;
/// What clients may have asked to be changed and the server has read: a pause brings all of it into its
/// epoch, beyond the tap's bound.
inline constexpr uint64_t kMaxChangesRead = 64u << 20;
/// The largest write, which is taken alone where it is beyond the bound.
inline constexpr uint64_t kMaxChangeBytes = 32u << 20;
inline constexpr uint64_t kMaxBeyondBound = kMaxChangesRead + kMaxChangeBytes;

/// write: new bytes. zero: the run reads as zeros and keeps its room. punch: it reads as zeros and its room
/// may be given back (a guest's trim, made definite).
enum class ChangeKind : uint8_t { write, zero, punch };

/// A run of bytes of one disk that changes. offset and bytes need no alignment; bytes > 0, within the disk.
struct Change {
  size_t disk = 0;  // number among the guest's disks
  ChangeKind kind = ChangeKind::write;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t sequence =
      0;  // of this guest's changes, from 1, rising, without a gap; asked again it is the same
};

/// What becomes of a change that was taken: it is made on the local disk, or it is kept in memory and done
/// with that, or its disk is broken.
enum class Fate : uint8_t { make, keep, refuse };
/// The same for a flush: carried out, answered at once, refused, or kept waiting until Server::retry().
enum class FlushFate : uint8_t { make, answer, refuse, wait };
struct KeptRun;

/// Told of requests before they are carried out. All calls come from the server's thread, and may not block.
class Observer {
 public:
  virtual ~Observer() = default;
  /// Before the change is made on the local disk; changes that overlap come in the order in which they take
  /// effect. `data` holds the bytes of a write (the span lasts for the call) and is empty for the others.
  /// False: there is no room. The server then keeps the request and all that come after it on any
  /// connection waiting (reads and flushes go on), and asks again after Server::retry().
  virtual bool changing(const Change& change, std::span<const std::byte> data) = 0;
  /// It is done on the local disk, well or, with an errno value, not: then the disk may have all, some or
  /// nothing of it. The client has not been answered yet.
  virtual void changed(const Change& change, int error) = 0;
  /// Whether flushes, and writes that are to be on the medium when they are answered, must wait until
  /// Server::retry().
  virtual bool flush_held() = 0;
  /// A flush has come, and is not held. True: the guest stands for an epoch, answer at once and flush the
  /// local disk then (the server does so without anybody waiting, but a later flush). False: answer when it
  /// is flushed.
  virtual bool flush_may_wait() = 0;
  /// Such a flush of nobody's has been made good, or has failed with this errno value.
  virtual void flushed_later(int error) = 0;

  // Of disks whose changes may be kept in memory instead (tap.h).
  /// Of the change that changing() has just taken. One that is not made is told to changed() at once.
  virtual Fate fate(const Change& /*change*/) { return Fate::make; }
  virtual FlushFate flush_fate(size_t /*disk*/) { return FlushFate::make; }
  /// What is kept of a run, before the local disk is looked at; null: nothing. `content`: with its bytes.
  virtual std::unique_ptr<KeptRun> kept(size_t /*disk*/, uint64_t /*offset*/, uint64_t /*bytes*/,
                                        bool /*content*/);
};

/// Asked before anything else of a change happens. Server's thread; does not block.
class ChangeGate {
 public:
  virtual ~ChangeGate() = default;
  /// False: it waits, as for room.
  virtual bool touch(const Change& change) = 0;
  /// It could not be made here; elsewhere it may be.
  virtual void failed(const Change& change) = 0;
};

}  // namespace remusd::disk
