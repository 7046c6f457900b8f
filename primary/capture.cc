// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/capture.h"

#include <pthread.h>

#include <algorithm>
#include <cstring>

namespace remusd::primary {
namespace {

constexpr size_t kDirtyReserve = 65536;   // ranges; a set that needs more grows once
constexpr size_t kSyncBacklogChunks = 2;  // a pass is over when no more than these wait to be shipped

bool is_zero(const std::byte* page) {
  static constexpr std::byte kZero[kPageSize] = {};
  return std::memcmp(page, kZero, kPageSize) == 0;
}

Status check_blob(const std::string& what, size_t bytes) {
  if (bytes <= ckpt::kMaxBlobBytes) return Status::ok_status();
  return Status(Code::exhausted, "the guest's " + what + " of " + std::to_string(bytes) +
                                     " bytes is larger than a checkpoint may carry");
}

}  // namespace

Capture::Capture(guest::Guest& guest, netbuf::NetBuffer& net, Staging& staging, const CaptureOptions& options)
    : guest_(guest), net_(net), staging_(staging), options_(options) {
  dirty_.reserve(kDirtyReserve);
}

Capture::~Capture() {
  request_stop();
  if (!thread_.joinable()) return;
  staging_.stop();
  thread_.join();
}

void Capture::start() {
  REMUSD_ASSERT(!thread_.joinable(), "epochs start once");
  thread_ = std::thread([this] { run(); });
  ::pthread_setname_np(thread_.native_handle(), "epoch");
}

void Capture::request_stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
}

std::string Capture::tracker_name() const {
  const std::lock_guard lock(mutex_);
  return tracker_name_;
}

/// Sleeps; false when a stop was asked for.
bool Capture::wait_until(Time when) {
  std::unique_lock lock(mutex_);
  return !wake_.wait_until(lock, when, [this] { return stop_; });
}

/// Staging was stopped or a stop was asked for: unwinds to run() without being an error of the driver.
Status Capture::stopped() {
  unwinding_ = true;
  return Status(Code::unavailable, "epochs were stopped");
}

void Capture::finish(Ending ending, Status why) {
  if (outcome_.ending != Ending::asked) return;  // The first reason counts.
  outcome_ = {ending, std::move(why)};
}

void Capture::run() {
  const Status status = protect();
  // A driver that fails because its guest died says so in its events.
  if (!unwinding_ && guest_goes_on()) finish(Ending::guest_error, status);
  // Best effort: an unknown or dead guest has no tracking worth removing.
  (void)guest_.stop_tracking();
  if (chunk_ != nullptr) staging_.recycle(std::exchange(chunk_, nullptr));
  staging_.put({Item::Kind::stopped});
}

Status Capture::protect() {
  REMUSD_TRY(guest_.start_tracking());
  {
    const std::lock_guard lock(mutex_);
    tracker_name_ = guest_.tracker_name();
  }
  REMUSD_TRY(first_sync());

  Time next = Clock::now();
  for (uint64_t number = 1;; ++number) {
    if (number > 1 && !wait_until(next)) return stopped();
    REMUSD_TRY(epoch(number));
    if (!guest_goes_on()) return stopped();
    // The grid is absolute: no drift. An epoch that took longer than its interval skips the missed points and
    // leaves the guest at least half an interval to run.
    next += options_.interval;
    const Time now = Clock::now();
    if (next < now) {
      late_ = number > 1;
      next += (now - next) / options_.interval * options_.interval;
      next = std::max(next, now + options_.interval / 2);
    }
  }
}

/// Passes over memory while the guest runs, each as soon as the one before is shipped, until little is left
/// for the first pause.
Status Capture::first_sync() {
  for (int round = 1; round <= options_.sync_rounds; ++round) {
    if (!wait_until(Clock::now())) return stopped();
    REMUSD_TRY(guest_.collect_dirty(&dirty_));
    const uint64_t pages = page_count(dirty_);
    sync_total_pages_ += pages;
    bool waited = false;
    uint64_t copied = 0;
    // The standby's memory begins as zeros: only the first pass may skip a page that is zero.
    if (!copy(dirty_, 1, round == 1, &waited, &copied)) return stopped();
    sync_total_pages_ -= pages - copied;
    flush(true);
    if (!staging_.wait_drained(kSyncBacklogChunks)) return stopped();
    if (pages < options_.sync_threshold_pages) break;
    if (!guest_goes_on()) return stopped();
  }
  return Status::ok_status();
}

Status Capture::epoch(uint64_t number) {
  if (base_wanted_) {
    REMUSD_ASSIGN(base_, guest_.base_stream());
    REMUSD_TRY(check_blob("base stream", base_.size()));
    base_wanted_ = false;
  }
  bool waited = false;
  EpochSlot* slot = staging_.acquire_slot(&waited);
  if (slot == nullptr) return stopped();
  if (chunk_ == nullptr) chunk_ = staging_.acquire_chunk(&waited);
  if (chunk_ == nullptr) {
    staging_.recycle(slot);
    return stopped();
  }
  slot->epoch = number;
  slot->base.swap(base_);
  slot->sample.epoch = number;
  slot->sample.stretched = waited || std::exchange(late_, false);
  if (number == 1) {
    net_.hold(1);
    staging_.put({Item::Kind::holding});
  }

  bool paused = false;
  Status status = paused_part(number, slot, &paused);
  if (!status.ok()) {
    // Half an epoch is worthless, but the guest must run on. After a driver's failure only destroy() is
    // allowed.
    if (paused && unwinding_) {
      const Status resumed = guest_.resume();
      if (!resumed.ok()) finish(Ending::guest_error, resumed);
    }
    staging_.recycle(slot);
    return status;
  }
  if (slot->sample.stretched) ++stretched_epochs_;
  flush(false);
  staging_.put({Item::Kind::sealed, nullptr, slot});
  return status;
}

Status Capture::paused_part(uint64_t number, EpochSlot* slot, bool* paused) {
  EpochSample& sample = slot->sample;
  const Time began = slot->began = Clock::now();
  REMUSD_TRY(guest_.pause());
  *paused = true;
  const Time stopped_at = Clock::now();
  // What QEMU sent before its answer to the pause is in the socket already and belongs to this epoch.
  net_.seal(number);
  REMUSD_TRY(guest_.collect_dirty(&dirty_));
  const Time scanned = Clock::now();
  if (!copy(dirty_, number, false, &sample.stretched, &sample.dirty_pages)) return stopped();
  const Time copied = Clock::now();
  REMUSD_ASSIGN(const std::span<const std::byte> device, guest_.save());
  REMUSD_TRY(check_blob("device state", device.size()));
  slot->device.assign(device.begin(), device.end());
  const Time saved = Clock::now();
  REMUSD_TRY(guest_.resume());
  *paused = false;
  const Time ended = Clock::now();

  sample.stop = stopped_at - began;
  sample.scan = scanned - stopped_at;
  sample.copy = copied - scanned;
  sample.save = saved - copied;
  sample.resume = ended - saved;
  sample.pause = ended - began;
  sample.device_bytes = device.size();
  return Status::ok_status();
}

/// Copies `pages` into chunks; full ones go to the ship thread at once. False when staging was stopped.
bool Capture::copy(const PageSet& pages, uint64_t epoch, bool skip_zero, bool* waited, uint64_t* copied) {
  const std::span<const std::byte> memory = guest_.memory();
  const uint64_t memory_pages = memory.size() / kPageSize;
  for (PageRange range : pages) {
    REMUSD_ASSERT(range.first < memory_pages && range.count <= memory_pages - range.first,
                  "a dirty page lies within the guest's memory");
    while (range.count > 0) {
      const std::byte* from = memory.data() + range.first * kPageSize;
      if (skip_zero && is_zero(from)) {
        ++range.first;
        --range.count;
        continue;
      }
      if (chunk_ == nullptr) chunk_ = staging_.acquire_chunk(waited);
      if (chunk_ == nullptr) return false;
      chunk_->epoch = epoch;
      const uint64_t room = kChunkPages - chunk_->pages;
      const uint64_t count = skip_zero ? 1 : std::min(range.count, room);
      std::memcpy(chunk_->data.data() + chunk_->pages * kPageSize, from, count * kPageSize);
      for (uint64_t i = 0; i < count; ++i) chunk_->numbers[chunk_->pages + i] = range.first + i;
      chunk_->pages += static_cast<uint32_t>(count);
      *copied += count;
      range.first += count;
      range.count -= count;
      if (chunk_->pages == kChunkPages) flush(true);
    }
  }
  return true;
}

void Capture::flush(bool wake) {
  if (chunk_ == nullptr || chunk_->pages == 0) return;
  staging_.put({Item::Kind::chunk, std::exchange(chunk_, nullptr)}, wake);
}

/// Looks at what the guest did by itself. False when protection must end.
bool Capture::guest_goes_on() {
  for (const guest::Event& event : guest_.take_events()) {
    switch (event.kind) {
      case guest::EventKind::rebooted:
        base_wanted_ = true;  // Firmware may have rewritten what the base stream carries.
        break;
      case guest::EventKind::powered_off:
        finish(Ending::guest_left, Status(Code::ok, "the guest powered off: " + event.detail));
        return false;
      case guest::EventKind::panicked:
        finish(Ending::guest_left, Status(Code::ok, "the guest panicked: " + event.detail));
        return false;
      case guest::EventKind::exited:
        finish(Ending::guest_gone, Status(Code::unavailable, "the guest exited: " + event.detail));
        return false;
    }
  }
  return true;
}

}  // namespace remusd::primary
