// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/verifier.h"

#include <algorithm>

#include "ckpt/thread.h"
#include "disk/digests.h"

namespace remusd::disk {
namespace {

/// For an epoch to be acknowledged, a change to be done, and the replica to come to it.
constexpr Duration kPatience = std::chrono::seconds(30);
/// The replica takes an epoch some moments after it is acknowledged; nobody tells when a change is done.
constexpr Duration kLookAgain = std::chrono::milliseconds(2);

}  // namespace

std::string_view to_string(VerifyProgress::State state) {
  switch (state) {
    case VerifyProgress::State::none:
      return "none";
    case VerifyProgress::State::running:
      return "running";
    case VerifyProgress::State::equal:
      return "equal";
    case VerifyProgress::State::different:
      return "different";
    case VerifyProgress::State::failed:
      break;
  }
  return "failed";
}

Verifier::Verifier(std::span<const LocalFile> files, Tap& tap, Inquiry& inquiry)
    : files_(files), tap_(tap), inquiry_(inquiry), key_(ckpt::make_digest_key()) {
  progress_.state = VerifyProgress::State::running;
  for (const LocalFile& file : files_) {
    touched_.emplace_back(file.bytes());
    busy_.emplace_back(file.bytes());
    if (!tap_.holds(busy_.size() - 1)) progress_.total_bytes += file.bytes();
  }
  tap_.follow([this](const Change& change) { touched_[change.disk].mark(change.offset, change.bytes); });
  thread_ = std::thread([this] {
    begin_thread("diskverify");
    const Status status = verify();
    tap_.follow(nullptr);
    const std::lock_guard lock(mutex_);
    progress_.failure = status;
    progress_.state = !status.ok()                     ? VerifyProgress::State::failed
                      : progress_.different_bytes == 0 ? VerifyProgress::State::equal
                                                       : VerifyProgress::State::different;
  });
}

Verifier::~Verifier() {
  thread_.join();
}

VerifyProgress Verifier::progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

bool Verifier::ended() const {
  const std::lock_guard lock(mutex_);
  return progress_.state != VerifyProgress::State::running;
}

Status Verifier::verify() {
  for (int pass = 0; pass < kMaxPasses; ++pass) {
    uint64_t epoch = 0;
    REMUSD_TRY(begin_pass(&epoch));
    uint64_t left = 0;
    for (size_t disk = 0; disk < files_.size(); ++disk) {
      uint64_t at = 0, offset = 0, bytes = 0;
      if (pass == 0 && !tap_.holds(disk)) REMUSD_TRY(compare(disk, 0, files_[disk].bytes(), epoch));
      // What it marks anew lies before `at`, or is this run again.
      while (pass > 0 && busy_[disk].take(&at, &offset, &bytes))
        REMUSD_TRY(compare(disk, offset, bytes, epoch));
      left += busy_[disk].marked_bytes();
    }
    const std::lock_guard lock(mutex_);
    progress_.busy_bytes = left;
    if (left == 0) break;
  }
  return {};
}

/// What the guest has not touched from here on is on both hosts.
Status Verifier::begin_pass(uint64_t* epoch) {
  for (size_t disk = 0; disk < files_.size(); ++disk) touched_[disk].unmark(0, files_[disk].bytes());
  const TapPosition position = tap_.position();
  *epoch = position.open_epoch;
  const Time deadline = Clock::now() + kPatience;
  while (tap_.position().oldest_under_way <= position.newest_change) {
    if (inquiry_.stopped()) return {Code::unavailable, "the session ended"};
    if (Clock::now() > deadline) return {Code::timed_out, "a change of the disks does not come to its end"};
    // Much shorter than the epoch that is waited for next.
    (void)tap_.await_acked(UINT64_MAX, Clock::now() + kLookAgain);
  }
  if (tap_.await_acked(*epoch, deadline)) return {};
  if (inquiry_.stopped()) return {Code::unavailable, "the session ended"};
  return {Code::timed_out, "epoch " + std::to_string(*epoch) + " is not acknowledged"};
}

Status Verifier::compare(size_t disk, uint64_t offset, uint64_t bytes, uint64_t epoch) {
  LocalMedium medium(&files_[disk]);
  const uint64_t end = offset + bytes;
  while (offset < end) {
    ckpt::DiskTell told;
    REMUSD_TRY(tell(disk, offset, end - offset, epoch, &told));
    REMUSD_TRY(compare_blocks(medium, told, key_, &buffer_, [&](const ckpt::DiskRun& run) {
      differs(disk, run);
      return Status();
    }));
    offset += told.bytes;
    const std::lock_guard lock(mutex_);
    progress_.compared_bytes = std::min(progress_.compared_bytes + told.bytes, progress_.total_bytes);
  }
  return {};
}

/// Of a replica that has come as far as `epoch`.
Status Verifier::tell(size_t disk, uint64_t offset, uint64_t bytes, uint64_t epoch, ckpt::DiskTell* told) {
  const Time deadline = Clock::now() + kPatience;
  for (;;) {
    ckpt::DiskAsk ask;
    ask.kind = ckpt::DiskAskKind::blocks;
    ask.disk = static_cast<uint16_t>(disk);
    ask.offset = offset;
    // In small steps: the less time between the two looks, the fewer blocks are busy.
    ask.bytes = std::min<uint64_t>(bytes, ckpt::kMaxDiskBlocksTold * ckpt::kDiskBlockBytes);
    ask.key = key_;
    inquiry_.ask(ask);
    REMUSD_TRY(inquiry_.answer(&answer_, told));
    const bool whole = told->bytes == ask.bytes || told->bytes % ckpt::kDiskBlockBytes == 0;
    if (told->kind != ask.kind || told->disk != disk || told->offset != offset || told->bytes > ask.bytes ||
        !whole)
      return {Code::corrupt, "the backup tells of another part of its disks than it was asked for"};
    if (told->epoch >= epoch) return {};
    if (Clock::now() > deadline) return {Code::timed_out, "the replica stays behind"};
    (void)tap_.await_acked(UINT64_MAX, Clock::now() + kLookAgain);
  }
}

void Verifier::differs(size_t disk, const ckpt::DiskRun& run) {
  for (uint64_t at = 0; at < run.bytes; at += ckpt::kDiskBlockBytes) {
    const uint64_t offset = run.offset + at;
    if (touched_[disk].marked(offset)) {
      busy_[disk].mark(offset, 1);
      continue;
    }
    const std::lock_guard lock(mutex_);
    progress_.different_bytes += std::min(ckpt::kDiskBlockBytes, run.bytes - at);
    if (progress_.places.size() < kMaxTold) progress_.places.push_back({disk, offset});
  }
}

}  // namespace remusd::disk
