// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Where epochs become the committed image: the standby's memory, the base stream and the device state.
//
// The life of an epoch: open (its frames come in and are verified one by one) -> staged (its COMMIT agreed:
// it will not be forgotten, and applying it cannot fail) -> applied (the image is exactly this epoch).
// Epoch 1 is written into the image as it comes, because there is none yet that it could spoil.
//
// What always holds:
//   - a page of epoch k >= 2 touches the image only after the COMMIT of k was found right;
//   - epochs are staged and applied in order, each once;
//   - device() and base() belong to the epoch applied(), and are asked for only when no epoch is half
//   applied.
//
// Bounds: one epoch keeps at most limit_bytes (frame bodies of pages, decoded blobs), all of them together
// twice that. Each frame received applies two frames of the epochs before, so the bound is not met in a
// steady flow; where it is, add() applies until there is room, however long that takes.
//
// Not thread-safe: it belongs to the receive thread.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "backup/frame_fifo.h"
#include "backup/seed.h"
#include "ckpt/disk_codec.h"
#include "ckpt/frame.h"
#include "ckpt/records.h"
#include "ckpt/status.h"

namespace remusd::backup {

/// Where changes of the guest's disks go, once nothing speaks against them any more. Does not block.
class DiskSink {
 public:
  virtual ~DiskSink() = default;
  /// A DISK body of epoch 1.
  virtual void sync(ckpt::Bytes body) = 0;
  /// Those of a whole later epoch, which may be none. Each epoch is told, in order.
  virtual void commit(uint64_t epoch, std::vector<ckpt::Bytes> bodies) = 0;
};

class Store {
 public:
  /// `memory` is the image: zeroed (but see begin_with()), a multiple of kPageSize, and outlives the Store.
  /// `deltas`: they were agreed on; otherwise they are refused.
  Store(std::span<std::byte> memory, size_t limit_bytes, bool deltas = false);

  /// The image holds these pages of an older one: epoch 1 is refused unless it accounts for each of them.
  /// Before the first frame.
  void begin_with(SeededPages pages) { seeded_ = std::move(pages); }

  /// The guest has disks of these sizes; without this every DISK frame is refused. `held`: those that are, a
  /// bit each: a body has runs of them or of others. `sink` outlives the Store. Before the first frame.
  void use_disks(std::vector<uint64_t> disk_bytes, DiskSink* sink, uint32_t held = 0) {
    disk_sizes_ = std::move(disk_bytes);
    disks_ = sink;
    held_ = held;
  }

  /// A PAGES, KEEP, DISK, DEVICE or BASE frame. `corrupt` for bytes that cannot be trusted or an epoch out of
  /// order, `exhausted` for an epoch beyond the limit. After a failure only drop_open() and applying are
  /// allowed.
  Status add(const ckpt::FrameView& frame);
  /// The COMMIT frame. ok: the epoch is staged (epoch 1: applied), and its record is in *commit.
  Status commit(const ckpt::FrameView& frame, ckpt::Commit* commit);
  /// Forgets the epoch that has not been committed.
  void drop_open();

  /// Applies at most `frames` frames of staged epochs, each at most kMaxPagesPerFrame pages.
  void apply_slice(size_t frames);
  /// An epoch is staged and not yet applied whole.
  bool pending() const { return !staged_epochs_.empty(); }
  void finish() {
    while (pending()) apply_slice(SIZE_MAX);
  }

  uint64_t staged() const { return staged_; }
  uint64_t applied() const { return applied_; }
  /// The committed epoch's. REQUIRES: !pending().
  std::span<const std::byte> device() const;
  std::span<const std::byte> base() const;

  uint64_t received_bytes() const { return received_bytes_; }  // bodies of data frames, ever
  size_t staged_bytes() const { return fifo_.bytes() + blob_bytes_ + disk_body_bytes_; }
  size_t limit_bytes() const { return limit_bytes_; }
  size_t memory_bytes() const;

 private:
  struct Staged {
    uint64_t epoch = 0;
    size_t frames = 0;  // not yet applied, at the front of the queue
    bool has_base = false;
    ckpt::Bytes device, base;
    std::vector<ckpt::Bytes> disks;
    size_t disk_body_bytes = 0;
    size_t blob_bytes() const { return device.size() + base.size(); }
  };
  struct Open {  // sums over the epoch that is coming in
    ckpt::EpochDigest digest;
    uint64_t pages = 0;
    size_t frames = 0;  // in the queue
    size_t bytes = 0;
    size_t blob_bytes = 0;
    std::vector<ckpt::Bytes> disks;  // bodies
    size_t disk_body_bytes = 0;
    uint64_t disk_raw_bytes = 0;
    bool device_started = false, base_started = false;
    ckpt::BlobAssembler device, base;
  };

  Status add_data(const ckpt::FrameView& frame);
  Status add_pages(const ckpt::FrameView& frame);
  Status add_disk(const ckpt::FrameView& frame);
  Status add_blob(const ckpt::FrameView& frame);
  Status make_room(size_t bytes);
  Status check(const ckpt::Commit& commit) const;
  void settle(Staged* staged);
  /// The device state of the newest staged epoch, which the next one's deltas are taken against.
  std::span<const std::byte> newest_device() const;

  std::span<std::byte> memory_;
  const size_t limit_bytes_;
  const bool deltas_;
  SeededPages seeded_;  // until epoch 1 is committed
  FrameFifo fifo_;
  Open open_;
  std::deque<Staged> staged_epochs_;
  std::vector<uint64_t> disk_sizes_;
  DiskSink* disks_ = nullptr;
  uint32_t held_ = 0;
  size_t blob_bytes_ = 0, disk_body_bytes_ = 0;  // of the open and the staged epochs
  uint64_t staged_ = 0;
  uint64_t applied_ = 0;
  uint64_t received_bytes_ = 0;
  ckpt::Bytes device_, base_;  // of epoch applied_
};

}  // namespace remusd::backup
