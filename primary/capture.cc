// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/capture.h"

#include "ckpt/fail_point.h"
#include "ckpt/thread.h"

namespace remusd::primary {
namespace {

constexpr size_t kDirtyReserve = 65536;  // ranges; a set that needs more grows once
constexpr Duration kInputPatience = std::chrono::milliseconds(5), kInputLook = std::chrono::microseconds(50);
constexpr Duration kStopLook = std::chrono::milliseconds(20);      // whether protection is to end, in a wait
constexpr Duration kPrepareWithin = std::chrono::milliseconds(2);  // before a pause, if not earlier
constexpr size_t kSyncBacklogChunks = 2;  // a pass is over when no more than these wait to be shipped

Status check_blob(const std::string& what, size_t bytes) {
  if (bytes <= ckpt::kMaxBlobBytes) return Status::ok_status();
  return Status(Code::exhausted, "the guest's " + what + " of " + std::to_string(bytes) +
                                     " bytes is larger than a checkpoint may carry");
}

}  // namespace

Capture::Capture(guest::Guest& guest, netbuf::NetBuffer& net, Staging& staging, const CaptureOptions& options)
    : guest_(guest),
      net_(net),
      staging_(staging),
      options_(options),
      pacer_(options.pace),
      page_copier_(guest, staging) {
  dirty_.reserve(kDirtyReserve);
  precopied_.reserve(kDirtyReserve);
  if (options.pace.latency_target > Duration::zero())
    net_.watch_output([this](uint64_t epoch) { on_output(epoch); });
}

Capture::~Capture() {
  net_.watch_output(nullptr);
  request_stop();
  if (!thread_.joinable()) return;
  staging_.stop();
  thread_.join();
}

void Capture::start() {
  REMUSD_ASSERT(!thread_.joinable(), "epochs start once");
  thread_ = std::thread([this] {
    begin_thread("epoch", Urgency::urgent);
    run();
  });
}

void Capture::request_stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
}

void Capture::request_last(netbuf::NetBuffer::TakeInput take) {
  {
    const std::lock_guard lock(mutex_);
    take_input_ = std::move(take);
    last_ = true;
  }
  wake_.notify_all();
}

void Capture::seeded(std::unique_ptr<const SeedMap> seed) {
  {
    const std::lock_guard lock(mutex_);
    seed_ = std::move(seed);
  }
  wake_.notify_all();
}

/// Null when a stop was asked for.
std::unique_ptr<const SeedMap> Capture::await_seed() {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, [this] { return stop_ || seed_ != nullptr; });
  return std::move(seed_);
}

std::string Capture::tracker_name() const {
  const std::lock_guard lock(mutex_);
  return tracker_name_;
}

bool Capture::stop_asked() {
  const std::lock_guard lock(mutex_);
  return stop_;
}

bool Capture::last_asked() {
  const std::lock_guard lock(mutex_);
  return last_ && !stop_;
}

/// Net thread: output waits that is covered by `epoch` at the earliest.
void Capture::on_output(uint64_t epoch) {
  {
    const std::lock_guard lock(mutex_);
    if (epoch <= output_epoch_) return;
    output_epoch_ = epoch;
    output_since_ = Clock::now();
  }
  wake_.notify_all();
}

void Capture::acknowledged(uint64_t epoch, Duration commit) {
  // A moving average over some eight epochs. Only the ship thread writes it.
  const int64_t before = commit_ns_;
  const int64_t now = std::chrono::nanoseconds(commit).count();
  commit_ns_ = before == 0 ? now : before + (now - before) / 8;
  const std::lock_guard lock(mutex_);
  acknowledged_epoch_ = epoch;
  // The epoch thread sleeps on the processor of the guest: it need not wake for that.
  if (unprepared_ == epoch + 1) prepare();
}

/// With the lock, so that the epoch thread does not begin a pause meanwhile.
void Capture::prepare() {
  guest_.prepare_pause();
  unprepared_ = 0;
}

/// Sleeps until epoch `number` is due; nothing when a stop or the last epoch was asked for. The hypervisor
/// gets ready for it when the one before is acknowledged, whose shipping has the processors until then.
std::optional<EpochReason> Capture::wait_due(uint64_t number) {
  std::unique_lock lock(mutex_);
  unprepared_ = number;
  const auto reason = sleep_until_due(number, lock);
  unprepared_ = 0;
  return reason;
}

std::optional<EpochReason> Capture::sleep_until_due(uint64_t number, std::unique_lock<std::mutex>& lock) {
  while (!stop_ && !last_) {
    std::optional<Time> output;
    if (output_epoch_ >= number) output = output_since_;
    const Pacer::Due due = pacer_.next(output, std::chrono::nanoseconds(commit_ns_));
    const Time now = Clock::now();
    if (now >= due.at) return due.reason;
    const bool shipped = acknowledged_epoch_ + 1 >= number;
    const Time prepare_at = shipped || output ? now : due.at - kPrepareWithin;
    const bool prepared = unprepared_ == 0;
    if (prepared || now < prepare_at) {
      wake_.wait_until(lock, prepared ? due.at : prepare_at);
    } else {
      prepare();
    }
  }
  return std::nullopt;
}

/// Staging was stopped or a stop was asked for: unwinds to run() without being an error of the driver.
Status Capture::stopped() {
  unwinding_ = true;
  return Status(Code::unavailable, "epochs were stopped");
}

void Capture::finish(Ending ending, Status why) {
  if (outcome_.ending != Ending::asked) return;  // The first reason counts.
  outcome_.ending = ending;
  outcome_.why = std::move(why);
}

void Capture::run() {
  const Status status = protect();
  // A driver that fails because its guest died says so in its events.
  if (!unwinding_ && guest_goes_on()) finish(Ending::guest_error, status);
  // Best effort: an unknown or dead guest has no tracking worth removing.
  if (!outcome_.standing) (void)guest_.stop_tracking();
  page_copier_.abandon();
  staging_.put({Item::Kind::stopped});
}

Status Capture::protect() {
  REMUSD_TRY(guest_.start_tracking());
  {
    const std::lock_guard lock(mutex_);
    tracker_name_ = guest_.tracker_name();
  }
  REMUSD_TRY(first_sync());

  if (stop_asked()) return stopped();
  REMUSD_TRY(epoch(1, EpochReason::interval));
  for (uint64_t number = 2; guest_goes_on(); ++number) {
    const std::optional<EpochReason> reason = wait_due(number);
    if (!reason) return last_asked() ? last_epoch(number) : stopped();
    REMUSD_TRY(epoch(number, *reason));
  }
  return stopped();
}

/// Passes over memory while the guest runs, each as soon as the one before is shipped, until little is left
/// for the first pause.
Status Capture::sync_memory() {
  std::unique_ptr<const SeedMap> seed;
  if (options_.seed && (seed = await_seed()) == nullptr) return stopped();
  for (int round = 1; round <= options_.sync_rounds; ++round) {
    if (stop_asked()) return stopped();
    REMUSD_TRY(guest_.collect_dirty(&dirty_));
    const uint64_t pages = page_count(dirty_);
    sync_total_pages_ += pages;
    bool waited = false;
    uint64_t copied = 0;
    // The standby's memory begins as zeros, but for what it told: only the first pass may skip a page that is
    // zero, or what was told.
    const bool against = seed != nullptr && seed->pages() > 0;
    if (!(against ? page_copier_.copy_against(*seed, dirty_, &waited, &copied)
                  : page_copier_.copy(dirty_, 1, round == 1, &waited, &copied)))
      return stopped();
    seed.reset();
    sync_total_pages_ -= pages - copied;
    page_copier_.flush(true);
    if (!staging_.wait_drained(kSyncBacklogChunks)) return stopped();
    if (pages < options_.sync_threshold_pages) break;
    if (!guest_goes_on()) return stopped();
  }
  return Status::ok_status();
}

/// Disks take long, and little of them is written again: they are copied first, and once more when memory is.
Status Capture::first_sync() {
  if (options_.copier == nullptr) return sync_memory();
  REMUSD_TRY(disks_done(options_.copier->settle()));
  REMUSD_TRY(sync_memory());
  // It stops the guest. From finish() to the first pause flushes of held disks wait, and a stop for them.
  REMUSD_TRY(take_base());
  return disks_done(options_.copier->finish());
}

Status Capture::disks_done(const Status& status) {
  if (status.ok()) return status;
  if (!stop_asked() && status.code() != Code::unavailable) finish(Ending::disk_error, status);
  return stopped();
}

Status Capture::take_base() {
  if (!base_wanted_) return {};
  REMUSD_ASSIGN(base_, guest_.base_stream());
  REMUSD_TRY(check_blob("base stream", base_.size()));
  base_wanted_ = false;
  return {};
}

/// What the disks hold for the backup lengthens the epoch.
Status Capture::await_disks(bool* waited) {
  while (options_.tap != nullptr && !options_.tap->await_room(Clock::now() + kStopLook)) {
    *waited = true;
    if (stop_asked()) return stopped();
  }
  return {};
}

Status Capture::epoch(uint64_t number, EpochReason reason) {
  REMUSD_TRY(take_base());
  bool waited = false;
  REMUSD_TRY(await_disks(&waited));
  EpochSlot* slot = staging_.acquire_slot(&waited);
  if (slot == nullptr) return stopped();
  slot->epoch = number;
  slot->base.swap(base_);
  EpochSample& sample = slot->sample;
  sample.epoch = number;
  Status status = precopy_.wanted() ? precopy(number, &sample, &waited) : Status();
  if (status.ok() && !page_copier_.make_ready(&waited)) status = stopped();
  if (!status.ok()) {
    staging_.recycle(slot);
    return status;
  }
  if (number == 1) {
    net_.hold(1);
    staging_.put({Item::Kind::holding});
  }

  sample.reason = waited ? EpochReason::staging : reason;
  bool paused = false;
  status = paused_part(number, slot, &paused);
  if (status.ok()) status = take_device_state(slot);
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
  pacer_.paused(slot->began, slot->began + sample.pause, sample.dirty_pages + sample.precopy_pages);
  if (options_.precopy) precopy_.note(sample.precopy_pages, sample.dirty_pages);
  page_copier_.flush(false);
  staging_.put({Item::Kind::sealed, nullptr, slot});
  hot_.note(dirty_);
  guest_.assume_written(hot_.taken());
  return status;
}

/// An epoch like any other, but that the guest stands from its pause on; then the thread ends.
Status Capture::last_epoch(uint64_t number) {
  bool waited = false;
  EpochSlot* slot = staging_.acquire_slot(&waited);
  if (slot == nullptr) return stopped();
  slot->epoch = number;
  slot->base.clear();
  {
    const std::lock_guard lock(mutex_);
    net_.divert(std::move(take_input_));
  }
  // What the hypervisor has not read when its guest is stopped would be lost with it.
  const Time patience = Clock::now() + kInputPatience;
  while (!net_.input_drained() && Clock::now() < patience) std::this_thread::sleep_for(kInputLook);

  slot->began = Clock::now();
  const DisksInPause disks(options_.tap);
  Status status = guest_.halt();
  const bool halted = status.ok();
  if (halted) status = standing_part(number, slot, disks);
  if (status.ok()) {
    outcome_.standing = slot->began;
    page_copier_.flush(false);
    staging_.put({Item::Kind::sealed, nullptr, slot});
    return stopped();
  }
  staging_.recycle(slot);
  net_.divert(nullptr);
  if (!halted || !unwinding_) return status;
  if (const Status runs = guest_.let_run(); !runs.ok()) finish(Ending::guest_error, runs);
  return status;
}

Status Capture::standing_part(uint64_t number, EpochSlot* slot, const DisksInPause& disks) {
  EpochSample& sample = slot->sample;
  const Time halted_at = Clock::now();
  net_.seal(number);
  disks.seal(number);
  REMUSD_TRY(guest_.collect_dirty(&dirty_));
  const Time scanned = Clock::now();
  bool waited = false;
  if (!page_copier_.copy(dirty_, number, false, &waited, &sample.dirty_pages)) return stopped();
  const Time ended = Clock::now();
  REMUSD_TRY(take_device_state(slot));
  sample.epoch = number;
  sample.reason = waited ? EpochReason::staging : EpochReason::interval;
  sample.interval = slot->began - began_;
  sample.stop = halted_at - slot->began;
  sample.scan = scanned - halted_at;
  sample.copy = ended - scanned;
  sample.pause = ended - slot->began;
  return Status::ok_status();
}

/// Copies what is dirty now, while the guest runs; what it writes meanwhile is dirty again.
Status Capture::precopy(uint64_t number, EpochSample* sample, bool* waited) {
  REMUSD_TRY(guest_.collect_dirty(&dirty_));
  subtract_pages(dirty_, hot_.taken(), &precopied_);  // Hot pages will be written again.
  if (!page_copier_.copy(precopied_, number, false, waited, &sample->precopy_pages)) return stopped();
  page_copier_.flush(true);
  return Status::ok_status();
}

Status Capture::paused_part(uint64_t number, EpochSlot* slot, bool* paused) {
  EpochSample& sample = slot->sample;
  const Time began = slot->began = Clock::now();
  const DisksInPause disks(options_.tap);
  REMUSD_TRY(guest_.pause());
  *paused = true;
  fail_point("primary.paused");
  const Time stopped_at = Clock::now();
  // What QEMU sent before its answer to the pause is in the socket already and belongs to this epoch.
  net_.seal(number);
  disks.seal(number);
  REMUSD_TRY(guest_.collect_dirty(&dirty_));
  REMUSD_TRY(fail_point_error("primary.scanned"));
  const Time scanned = Clock::now();
  bool waited = false;
  if (!page_copier_.copy(dirty_, number, false, &waited, &sample.dirty_pages)) return stopped();
  fail_point("primary.copied");
  const Time copied = Clock::now();
  REMUSD_TRY(guest_.resume());
  *paused = false;
  fail_point("primary.resumed");
  const Time ended = Clock::now();

  if (waited) sample.reason = EpochReason::staging;
  if (number > 1) sample.interval = began - began_;
  began_ = began;
  sample.stop = stopped_at - began;
  sample.scan = scanned - stopped_at;
  sample.copy = copied - scanned;
  sample.resume = ended - copied;
  sample.pause = ended - began;
  return Status::ok_status();
}

/// The guest runs already; its driver kept the state of the pause.
Status Capture::take_device_state(EpochSlot* slot) {
  REMUSD_ASSIGN(const std::span<const std::byte> device, guest_.save());
  REMUSD_TRY(check_blob("device state", device.size()));
  slot->device.assign(device.begin(), device.end());
  slot->sample.device_bytes = device.size();
  return fail_point_error("primary.saved");
}

/// Looks at what the guest did by itself. False when protection must end.
bool Capture::guest_goes_on() {
  for (const guest::Event& event : guest_.take_events()) {
    if (options_.on_event) options_.on_event(event);
    switch (event.kind) {
      case guest::EventKind::rebooted:
        base_wanted_ = true;  // Firmware may have rewritten what the base stream carries.
        break;
      case guest::EventKind::powered_off:
        finish(Ending::guest_left, Status(Code::ok, "the guest powered off: " + event.detail));
        return false;
      case guest::EventKind::panicked:
        break;  // As a machine would: what follows is its own affair.
      case guest::EventKind::exited:
        finish(Ending::guest_gone, Status(Code::unavailable, "the guest exited: " + event.detail));
        return false;
    }
  }
  return true;
}

}  // namespace remusd::primary
