// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The pure heart of output commit for packets: a bounded FIFO of frames, each tagged with the epoch that must
// be acknowledged before it may leave.
//
// States: holding (the pair is whole, or nobody knows) and passing (unprotected: frames leave at once).
// Always: tags never decrease along the queue; a frame leaves only when its tag <= released() or when
// passing; bytes() <= limit_bytes. Not thread-safe; the net thread owns it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "ckpt/clock.h"

namespace remusd::netbuf {

class EpochQueue {
 public:
  struct Frame {
    uint64_t epoch = 0;
    Time arrived;
    std::vector<std::byte> bytes;
  };

  EpochQueue(size_t limit_bytes, size_t limit_frames);

  /// False when there is no room: the caller must keep the frame and stop reading its source.
  bool push(uint64_t epoch, Time now, std::span<const std::byte> frame);
  /// True when push() of `bytes` bytes would be taken.
  bool has_room(size_t bytes) const;

  /// All frames tagged <= epoch may leave. A lower epoch than before is ignored (acks may repeat).
  void release_through(uint64_t epoch);
  /// passing = true: every frame may leave, now and later. false: hold again from here on.
  void set_passing(bool passing);
  bool passing() const { return passing_; }

  /// The next frame that may leave, or null. Valid until pop() or push().
  const Frame* front_released() const;
  void pop();

  uint64_t released() const { return released_; }
  /// Of the frame that was pushed last; 0: there was none.
  uint64_t newest_tag() const { return last_tag_; }
  size_t bytes() const { return bytes_; }
  size_t frames() const { return frames_.size(); }
  /// Drops everything held: the right to speak was lost. Returns how many frames.
  size_t discard();

 private:
  size_t limit_bytes_;
  size_t limit_frames_;
  size_t bytes_ = 0;
  uint64_t released_ = 0;
  uint64_t last_tag_ = 0;
  bool passing_ = true;
  std::deque<Frame> frames_;
};

}  // namespace remusd::netbuf
