// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/store.h"

#include <algorithm>
#include <string>
#include <utility>

#include "ckpt/fail_point.h"
#include "ckpt/page_codec.h"

namespace remusd::backup {
namespace {

constexpr size_t kFramesAppliedPerFrame = 2;

Status corrupt(uint64_t epoch, const std::string& what) {
  return Status(Code::corrupt, "epoch " + std::to_string(epoch) + ": " + what);
}

std::string counts(const char* name, uint64_t committed, uint64_t counted) {
  return std::string(name) + " committed " + std::to_string(committed) + ", received " +
         std::to_string(counted);
}

}  // namespace

Store::Store(std::span<std::byte> memory, size_t limit_bytes, bool deltas)
    : memory_(memory),
      limit_bytes_(limit_bytes),
      deltas_(deltas),
      // A frame beyond the limit is refused before it is kept.
      fifo_(std::min(limit_bytes, FrameFifo::kChunkBytes)) {
  REMUSD_ASSERT(memory.size() % kPageSize == 0, "memory is whole pages");
}

Status Store::add(const ckpt::FrameView& frame) {
  if (frame.header.epoch != staged_ + 1) {
    return corrupt(frame.header.epoch, "came when epoch " + std::to_string(staged_ + 1) + " was due");
  }
  REMUSD_TRY(add_data(frame));
  open_.digest.add(frame.header.checksum);
  received_bytes_ += frame.body.size();
  apply_slice(kFramesAppliedPerFrame);
  return {};
}

Status Store::add_data(const ckpt::FrameView& frame) {
  switch (frame.type()) {
    case ckpt::FrameType::pages:
      return add_pages(frame);
    case ckpt::FrameType::keep:
      // Without older pages there is none that may be kept.
      return seeded_.keep(frame.body, memory_).with_context("epoch " + std::to_string(frame.header.epoch));
    case ckpt::FrameType::disk:
      return add_disk(frame);
    default:
      return add_blob(frame);
  }
}

Status Store::add_pages(const ckpt::FrameView& frame) {
  const uint64_t epoch = frame.header.epoch;
  uint32_t pages = 0;
  if (Status status = ckpt::check_pages(frame.body, memory_.size() / kPageSize, &pages, deltas_);
      !status.ok()) {
    return status.with_context("epoch " + std::to_string(epoch));
  }
  if (epoch == 1) {
    REMUSD_TRY(ckpt::apply_pages(frame.body, memory_));
    seeded_.sent(frame.body);
  } else {
    REMUSD_TRY(make_room(frame.body.size()));
    REMUSD_TRY(ckpt::verify_pages(frame.body));
    fifo_.push(frame.body);
    ++open_.frames;
    open_.bytes += frame.body.size();
  }
  open_.pages += pages;
  return {};
}

Status Store::add_disk(const ckpt::FrameView& frame) {
  const uint64_t epoch = frame.header.epoch;
  uint64_t raw_bytes = 0;
  Status status = ckpt::check_disk(frame.body, disk_sizes_, &raw_bytes);
  if (status.ok()) status = ckpt::is_held(frame.body, held_).status();
  if (status.ok()) status = ckpt::verify_disk(frame.body);
  if (!status.ok()) return status.with_context("epoch " + std::to_string(epoch));
  REMUSD_ASSERT(disks_ != nullptr, "a guest without disks has no run that fits");
  ckpt::Bytes body(frame.body.begin(), frame.body.end());
  if (epoch == 1) {
    disks_->sync(std::move(body));
  } else {
    REMUSD_TRY(make_room(body.size()));
    open_.bytes += body.size();
    open_.disk_body_bytes += body.size();
    disk_body_bytes_ += body.size();
    open_.disks.push_back(std::move(body));
  }
  open_.disk_raw_bytes += raw_bytes;
  return {};
}

Status Store::add_blob(const ckpt::FrameView& frame) {
  const bool device = frame.type() == ckpt::FrameType::device;
  REMUSD_ASSERT(device || frame.type() == ckpt::FrameType::base, "only data frames are stored");
  ckpt::BlobPart part;
  REMUSD_TRY(ckpt::decode(frame.body, &part));
  bool& started = device ? open_.device_started : open_.base_started;
  if (!started) {
    // The whole blob is accounted for at its first part, before memory is taken for it.
    if (part.total_bytes > ckpt::kMaxBlobBytes) {
      return corrupt(frame.header.epoch, "a blob of " + std::to_string(part.total_bytes) + " bytes");
    }
    REMUSD_TRY(make_room(part.total_bytes));
    started = true;
    open_.bytes += part.total_bytes;
    open_.blob_bytes += part.total_bytes;
    blob_bytes_ += part.total_bytes;
  }
  return device ? open_.device.add(part, deltas_ ? newest_device() : ckpt::View()) : open_.base.add(part);
}

Status Store::make_room(size_t bytes) {
  if (bytes > limit_bytes_ - open_.bytes) {
    return Status(Code::exhausted, "epoch " + std::to_string(staged_ + 1) + " needs more than the " +
                                       std::to_string(limit_bytes_) +
                                       " bytes that may be staged; raise the staging limit of the backup");
  }
  while (pending() && staged_bytes() + bytes > 2 * limit_bytes_) apply_slice(1);
  REMUSD_ASSERT(staged_bytes() + bytes <= 2 * limit_bytes_, "staging is bounded");
  return {};
}

Status Store::commit(const ckpt::FrameView& frame, ckpt::Commit* commit) {
  if (frame.header.epoch != staged_ + 1) {
    return corrupt(frame.header.epoch, "committed when epoch " + std::to_string(staged_ + 1) + " was due");
  }
  REMUSD_TRY(ckpt::decode(frame.body, commit));
  REMUSD_TRY(check(*commit));

  Staged staged;
  staged.epoch = frame.header.epoch;
  staged.frames = open_.frames;
  staged.device = open_.device.take();
  staged.has_base = open_.base_started;
  if (staged.has_base) staged.base = open_.base.take();
  staged.disks = std::move(open_.disks);
  staged.disk_body_bytes = open_.disk_body_bytes;
  open_ = {};
  ++staged_;
  if (staged_ == 1) {
    seeded_ = {};
    settle(&staged);
  } else {
    staged_epochs_.push_back(std::move(staged));
  }
  return {};
}

Status Store::check(const ckpt::Commit& commit) const {
  const uint64_t epoch = staged_ + 1;
  if (commit.frames != open_.digest.frames()) {
    return corrupt(epoch, counts("frames", commit.frames, open_.digest.frames()));
  }
  if (commit.pages != open_.pages) return corrupt(epoch, counts("pages", commit.pages, open_.pages));
  if (!open_.device.complete()) return corrupt(epoch, "its device state is not whole");
  if (open_.base_started && !open_.base.complete()) return corrupt(epoch, "its base stream is not whole");
  const size_t device_bytes = open_.device.blob().size();
  if (commit.device_bytes != device_bytes) {
    return corrupt(epoch, counts("bytes of device state", commit.device_bytes, device_bytes));
  }
  const uint64_t raw_bytes = open_.pages * kPageSize + open_.blob_bytes + open_.disk_raw_bytes;
  if (commit.raw_bytes != raw_bytes) return corrupt(epoch, counts("bytes", commit.raw_bytes, raw_bytes));
  if (seeded_.waiting() > 0) {
    return corrupt(epoch,
                   std::to_string(seeded_.waiting()) + " pages of an older image are not accounted for");
  }
  if (commit.digest != open_.digest.value()) return corrupt(epoch, "its digest is wrong");
  return {};
}

void Store::drop_open() {
  for (size_t i = 0; i < open_.frames; ++i) fifo_.pop_back();
  blob_bytes_ -= open_.blob_bytes;
  disk_body_bytes_ -= open_.disk_body_bytes;
  open_ = {};
}

void Store::apply_slice(size_t frames) {
  while (pending()) {
    Staged& staged = staged_epochs_.front();
    for (; staged.frames > 0 && frames > 0; --staged.frames, --frames) {
      const Status status = ckpt::apply_pages(fifo_.front(), memory_);
      REMUSD_ASSERT(status.ok(), "a verified frame cannot fail to decode");
      fifo_.pop_front();
      fail_point("backup.half_applied");
    }
    if (staged.frames > 0) return;
    settle(&staged);
    staged_epochs_.pop_front();
  }
}

// All its pages are in the image: the image is this epoch from here on.
void Store::settle(Staged* staged) {
  REMUSD_ASSERT(staged->epoch == applied_ + 1 && staged->frames == 0, "epochs become the image in order");
  blob_bytes_ -= staged->blob_bytes();
  device_ = std::move(staged->device);
  if (staged->has_base) base_ = std::move(staged->base);
  disk_body_bytes_ -= staged->disk_body_bytes;
  if (disks_ != nullptr) disks_->commit(staged->epoch, std::move(staged->disks));
  applied_ = staged->epoch;
  fail_point("backup.applied");
}

std::span<const std::byte> Store::newest_device() const {
  return staged_epochs_.empty() ? device_ : staged_epochs_.back().device;
}

std::span<const std::byte> Store::device() const {
  REMUSD_ASSERT(!pending() && applied_ > 0, "half an epoch is nobody's state");
  return device_;
}

std::span<const std::byte> Store::base() const {
  REMUSD_ASSERT(!pending() && applied_ > 0, "half an epoch is nobody's state");
  return base_;
}

size_t Store::memory_bytes() const {
  return fifo_.memory_bytes() + blob_bytes_ + disk_body_bytes_ + device_.capacity() + base_.capacity();
}

}  // namespace remusd::backup
