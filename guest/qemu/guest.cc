// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/guest.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>

#include "guest/qemu/stream.h"

namespace remusd::guest::qemu {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

constexpr std::string_view kStop = R"({"execute":"stop"})";
constexpr std::string_view kCont = R"({"execute":"cont"})";
constexpr std::string_view kLastByte = "}";
constexpr Duration kBaseTimeout = 30s;
constexpr Duration kFinishPoll = 200us;
// The general monitor hears every STOP and RESUME, too: read it before its socket fills.
constexpr uint64_t kDrainEvery = 16;

// QEMU stops the guest, writes its device state into a pipe and lets the guest run on, all in one command.
// Most of the state does not fit the pipe: QEMU waits, and the guest with it, until the pipe is made large.
constexpr size_t kHoldingPipeBytes = 4096, kOpenPipeBytes = size_t{1} << 20;
constexpr size_t kUsualDeviceBytes = size_t{256} << 10;

Status size_pipe(int pipe, size_t bytes) {
  if (::fcntl(pipe, F_SETPIPE_SZ, static_cast<int>(bytes)) == static_cast<int>(bytes)) return {};
  return Status::from_errno("size the pipe of the device state");
}

std::string_view ahead(std::string_view command) {
  return command.substr(0, command.size() - 1);
}

/// Forgets that the pipe was opened.
void clear_opened(const ScopedFd& opened) {
  alignas(inotify_event) std::array<char, 4096> events{};
  while (opened && ::read(opened.get(), events.data(), events.size()) > 0) {
  }
}

}  // namespace

QemuGuest::QemuGuest(std::unique_ptr<Machine> machine) : machine_(std::move(machine)) {
  sends_ahead_ = machine_->fast != nullptr && machine_->fast->parses_ahead();
}

QemuGuest::~QemuGuest() {
  if (machine_->process.gone(Duration::zero())) return;
  if (phase_ == Phase::standing) (void)let_run();
  (void)stop_tracking();
  ::unlink(machine_->save_path.c_str());
}

std::unique_lock<std::mutex> QemuGuest::lock_pause_monitor() {
  std::unique_lock<std::mutex> lock(machine_->mutex, std::defer_lock);
  if (!machine_->fast) lock.lock();  // Every holder's call has a deadline of its own.
  return lock;
}

Result<int> QemuGuest::give_fd(int fd) {
  const std::lock_guard lock(machine_->mutex);
  REMUSD_ASSIGN(const json answer, machine_->general->call("add-fd", nullptr, fd));
  if (!answer.is_object() || !answer.value("fd", json()).is_number_integer() ||
      !answer.value("fdset-id", json()).is_number_integer()) {
    return Status(Code::corrupt, "QMP add-fd: the answer names no descriptor");
  }
  tracker_fdsets_.push_back(answer["fdset-id"].get<int64_t>());
  return answer["fd"].get<int>();
}

Status QemuGuest::start_tracking() {
  REMUSD_TRY(stop_tracking());
  {
    const std::lock_guard lock(machine_->mutex);
    if (!pause_monitor()->broken().ok()) save_ahead_ = false;
    REMUSD_TRY(machine_->reconnect());
  }
  checked_bytes_ = 0;
  REMUSD_TRY(open_save_pipe());
  REMUSD_ASSIGN(tracker_,
                plant_tracker(machine_->process.pid(), machine_->ram.range, machine_->ram.file.get(),
                              machine_->tracker, [this](int fd) { return give_fd(fd); }));
  tracker_name_ = tracker_->name();
  priority_ = PausePriority(pid());
  placement_ = Placement(pid(), server_);
  awake_ = AwakeProcessor(machine_->awake_path);
  first_collect_ = true;
  return {};
}

Status QemuGuest::stop_tracking() {
  let_go();
  tracker_.reset();
  tracker_name_ = "none";
  priority_ = {};
  placement_ = {};
  awake_ = {};
  if (tracker_fdsets_.empty() || machine_->process.gone(Duration::zero())) return {};
  const std::lock_guard lock(machine_->mutex);
  for (const int64_t set : tracker_fdsets_) {
    (void)machine_->general->call("remove-fd", {{"fdset-id", set}});
  }
  tracker_fdsets_.clear();
  return {};
}

/// After a failure in a pause: QEMU waits for room in the pipe, or is about to open it. Without a reader its
/// write fails, without a pipe it makes a file; either way it lets the guest run on, as soon as it can.
void QemuGuest::let_go() {
  if (phase_ != Phase::paused) return;
  ::unlink(machine_->save_path.c_str());
  save_pipe_.reset();
  phase_ = Phase::running;
  const auto lock = lock_pause_monitor();
  if (pause_monitor()->broken().ok()) (void)pause_monitor()->await_ok();  // the answer to the pause
}

std::string QemuGuest::tracker_name() const {
  return tracker_name_;
}

Status QemuGuest::collect_dirty(PageSet* dirty) {
  if (!tracker_) return {Code::invalid, "collect dirty pages: tracking has not been started"};
  REMUSD_TRY(tracker_->collect(dirty));
  if (!first_collect_) return {};
  // After the tracker was asked: a page that is populated later is in its next answer.
  REMUSD_TRY(populated_pages(machine_->ram.file.get(), 0, machine_->facts.memory_bytes, &populated_));
  merge_pages(populated_, dirty);
  PageSet().swap(populated_);
  first_collect_ = false;
  return {};
}

void QemuGuest::assume_written(const PageSet& pages) {
  if (tracker_) tracker_->assume_written(pages);
}

Status QemuGuest::open_save_pipe() {
  if (save_pipe_) return {};
  // A named one: QEMU truncates what it opens, which a descriptor of a pipe that is passed to it refuses.
  const std::string& path = machine_->save_path;
  ::unlink(path.c_str());
  struct stat process {};
  if (::stat(("/proc/" + std::to_string(pid())).c_str(), &process) != 0 ||
      ::mkfifo(path.c_str(), 0600) != 0 || ::chown(path.c_str(), process.st_uid, process.st_gid) != 0) {
    return Status::from_errno("make the pipe '" + path + "' for the device state");
  }
  // For both ways: then QEMU never waits for a reader, and we never see an end.
  ScopedFd pipe(::open(path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!pipe) return Status::from_errno("open the pipe '" + path + "'");
  REMUSD_TRY(size_pipe(pipe.get(), kHoldingPipeBytes));
  if (!machine_->disks.empty()) {
    opened_ = ScopedFd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    if (!opened_ || ::inotify_add_watch(opened_.get(), path.c_str(), IN_OPEN) < 0) {
      return Status::from_errno("watch the pipe '" + path + "'");
    }
  }
  save_command_ =
      json{{"execute", "xen-save-devices-state"}, {"arguments", {{"filename", path}, {"live", false}}}}
          .dump();
  device_.resize(kUsualDeviceBytes);
  save_pipe_ = std::move(pipe);
  return {};
}

/// Until no instruction of the guest runs and no device writes its memory. Without disks that is so at the
/// STOP event. After it QEMU lets the disks' requests end, some of which read into memory, and flushes; then
/// it opens the pipe.
Status QemuGuest::await_stands(Qmp* qmp) {
  if (!opened_) return qmp->await_stop(save_pipe_.get());
  return qmp->await_stop(opened_.get(), Qmp::Until::readable);
}

/// QEMU takes its orders byte by byte, some 5 us each, on its monitor's thread: all of this one but the last.
void QemuGuest::prepare_pause() {
  if (!sends_ahead_ || save_ahead_ || !save_pipe_) return;
  const auto lock = lock_pause_monitor();
  save_ahead_ = pause_monitor()->write(ahead(save_command_)).ok();
}

Status QemuGuest::pause() {
  REMUSD_ASSERT(phase_ == Phase::running, "only a running guest is paused");
  REMUSD_TRY(open_save_pipe());
  const auto lock = lock_pause_monitor();
  Qmp* qmp = pause_monitor();
  // Events of earlier stops, such as the base stream's, are none of this pause.
  if (Status status = qmp->drain(); !status.ok()) return machine_->explain(status);
  (void)qmp->take_stops();
  clear_opened(opened_);
  device_bytes_ = 0;
  const std::string_view command = save_ahead_ ? kLastByte : std::string_view(save_command_);
  save_ahead_ = false;
  awake_.hold();
  if (Status status = qmp->write(command); !status.ok()) return machine_->explain(status);
  phase_ = Phase::paused;
  Status status = await_stands(qmp);
  if (!status.ok() && qmp->broken().ok()) phase_ = Phase::running;  // QEMU itself refused.
  if (!status.ok()) awake_.release();
  return machine_->explain(status).with_context("stop the guest");
}

/// Takes what QEMU has written so far.
Status QemuGuest::take_saved() {
  for (;;) {
    if (device_bytes_ == device_.size()) device_.resize(2 * device_.size());
    const ssize_t got =
        ::read(save_pipe_.get(), device_.data() + device_bytes_, device_.size() - device_bytes_);
    if (got > 0) {
      device_bytes_ += static_cast<size_t>(got);
      if (device_bytes_ > kMaxDeviceBytes) {
        return {Code::exhausted, "the device state has more than the " + std::to_string(kMaxDeviceBytes) +
                                     " bytes that can be carried"};
      }
    } else if (got < 0 && errno != EINTR) {
      return errno == EAGAIN ? Status() : Status::from_errno("read the device state");
    }
  }
}

/// A standby has the devices that the guest had when it was made: a state with others cannot be loaded. One
/// that is plugged in or out changes the length of the state, and only then is it worth the question.
Status QemuGuest::check_plugged() {
  if (!tracker_ || device_bytes_ == checked_bytes_) return {};
  std::vector<std::string> now;
  {
    const std::lock_guard lock(machine_->mutex);
    REMUSD_ASSIGN(now, machine_->list_devices());
  }
  const std::vector<std::string>& then = machine_->devices;
  if (now == then) {
    checked_bytes_ = device_bytes_;
    return {};
  }
  std::string names;
  const auto add_missing = [&names](const auto& some, const auto& others) {
    for (const std::string& device : some) {
      if (std::find(others.begin(), others.end(), device) == others.end()) names += " " + device;
    }
  };
  add_missing(now, then);
  add_missing(then, now);
  return {Code::unsafe, "somebody has plugged in or out since it was started:" + names +
                            ": its standby does not have the same devices"};
}

Result<std::span<const std::byte>> QemuGuest::save() {
  REMUSD_ASSERT(phase_ != Phase::paused, "the device state is there once the guest was resumed");
  if (!save_status_.ok()) return save_status_.with_context("save the device state");
  REMUSD_TRY(check_plugged());
  return std::span<const std::byte>(device_).first(device_bytes_);
}

Status QemuGuest::resume() {
  REMUSD_ASSERT(phase_ == Phase::paused, "only a paused guest is resumed");
  {
    const auto lock = lock_pause_monitor();
    Qmp* qmp = pause_monitor();
    REMUSD_TRY(size_pipe(save_pipe_.get(), kOpenPipeBytes));
    save_status_ = qmp->await_ok(save_pipe_.get(), [this] { return take_saved(); });
    awake_.release();
    if (!qmp->broken().ok()) return machine_->explain(qmp->broken());
    phase_ = Phase::running;
    if (Status status = take_saved(); save_status_.ok()) save_status_ = std::move(status);
    const int stops = qmp->take_stops();
    if (save_status_.ok() && (stops > 1 || device_bytes_ <= kHoldingPipeBytes)) {
      // Then it may have run while its pages were copied.
      save_status_ = Status(Code::io, stops > 1 ? "somebody else stopped the guest as well"
                                                : "QEMU did not wait with the rest of the state");
    }
    REMUSD_TRY(size_pipe(save_pipe_.get(), kHoldingPipeBytes));
  }
  if (++resumes_ % kDrainEvery == 0) {
    drain_general();
    placement_.stand_apart();
    awake_.choose(placement_.main_processor());
  }
  return {};
}

Status QemuGuest::order(std::string_view command) {
  Qmp* qmp = machine_->general.get();
  REMUSD_TRY(qmp->write(command));
  return qmp->await_ok();
}

/// Leaves the guest stopped, also when saving failed.
Status QemuGuest::stop_and_save() {
  REMUSD_ASSERT(phase_ == Phase::running, "only a running guest is paused");
  REMUSD_TRY(open_save_pipe());
  REMUSD_TRY(size_pipe(save_pipe_.get(), kOpenPipeBytes));
  device_bytes_ = 0;
  REMUSD_TRY(order(kStop));
  phase_ = Phase::standing;
  Qmp* qmp = machine_->general.get();
  REMUSD_TRY(qmp->write(save_command_));
  REMUSD_TRY(qmp->await_ok(save_pipe_.get(), [this] { return take_saved(); }));
  return take_saved();
}

Status QemuGuest::halt() {
  const std::lock_guard lock(machine_->mutex);
  save_status_ = stop_and_save();
  return machine_->explain(save_status_).with_context("halt the guest");
}

Status QemuGuest::let_run() {
  REMUSD_ASSERT(phase_ == Phase::standing, "only a guest that stands is let run");
  const std::lock_guard lock(machine_->mutex);
  if (Status status = order(kCont); !status.ok()) return machine_->explain(status);
  phase_ = Phase::running;
  REMUSD_TRY(size_pipe(save_pipe_.get(), kHoldingPipeBytes));
  // The pause's monitor hears of all this, too; what it has not read would stand before the next pause.
  return machine_->fast ? machine_->fast->drain() : Status();
}

Result<Duration> QemuGuest::plain_pause() {
  const Time began = Clock::now();
  const Status saved = halt();
  if (phase_ == Phase::standing) REMUSD_TRY(let_run());
  const Duration took = Clock::now() - began;
  REMUSD_TRY(saved);
  return took;
}

void QemuGuest::drain_general() {
  const std::unique_lock lock(machine_->mutex, std::try_to_lock);
  if (lock.owns_lock()) (void)machine_->general->drain();
}

Status QemuGuest::record_migration(int fd) {
  Qmp* qmp = machine_->general.get();
  json capabilities = json::array();
  for (const char* name : {"x-ignore-shared", "events"}) {
    capabilities.push_back({{"capability", name}, {"state", true}});
  }
  REMUSD_TRY(qmp->call("migrate-set-capabilities", {{"capabilities", capabilities}}).status());
  REMUSD_TRY(qmp->call("getfd", {{"fdname", "remusd-base"}}, fd).status());
  REMUSD_TRY(qmp->call("migrate", {{"uri", "fd:remusd-base"}}).status());
  const Time deadline = Clock::now() + kBaseTimeout;
  for (;;) {
    REMUSD_ASSIGN(const QmpEvent event, qmp->await_watched(deadline));
    const std::string status = text_member(event.data, "status");
    if (status == "completed") break;
    if (status == "failed" || status == "cancelled") {
      return {Code::io, "QEMU could not write its migration stream (status " + status + ")"};
    }
  }
  // The event comes a moment before QEMU is ready to go on; no event tells that.
  for (;;) {
    REMUSD_ASSIGN(const json status, qmp->call("query-status"));
    if (text_member(status, "status") != "finish-migrate") break;
    if (Clock::now() > deadline) return {Code::timed_out, "QEMU does not finish its migration"};
    std::this_thread::sleep_for(kFinishPoll);
  }
  // Migrated away, as it believes.
  return qmp->call("cont").status();
}

Result<std::vector<std::byte>> QemuGuest::base_stream() {
  REMUSD_ASSERT(phase_ == Phase::running, "the base stream is taken from a running guest");
  ScopedFd file(::memfd_create("remusd-base-stream", MFD_CLOEXEC));
  if (!file) return Status::from_errno("make a file for the base stream");
  {
    const std::lock_guard lock(machine_->mutex);
    machine_->general->watch("MIGRATION");
    const Status status = record_migration(file.get());
    machine_->general->watch({});
    if (!status.ok()) return machine_->explain(status).with_context("take the base stream");
  }
  const off_t size = ::lseek(file.get(), 0, SEEK_END);
  if (size <= 0 || static_cast<uint64_t>(size) > kMaxStreamBytes) {
    return Status(Code::exhausted, "the base stream has " + std::to_string(size) + " bytes; between 1 and " +
                                       std::to_string(kMaxStreamBytes) + " can be carried");
  }
  REMUSD_ASSIGN(const Mapping stream,
                Mapping::shared(file.get(), static_cast<size_t>(size), false, "the base stream"));
  return extract_base(stream.bytes(), machine_->ram.block);
}

Status QemuGuest::destroy() {
  return machine_->destroy();
}

Residue QemuGuest::take_memory() {
  return {std::move(machine_->ram.file), std::move(machine_->ram.mapping)};
}

Status QemuGuest::power_button() {
  const std::lock_guard lock(machine_->mutex);
  REMUSD_TRY(machine_->reconnect());
  return machine_->general->call("system_powerdown").status();
}

Status QemuGuest::announce() {
  const std::lock_guard lock(machine_->mutex);
  return machine_->general
      ->call("announce-self", {{"initial", 50}, {"max", 550}, {"rounds", 5}, {"step", 100}})
      .status();
}

std::vector<Event> QemuGuest::take_events() {
  std::vector<Event> events;
  // Asked before its last words are read: a power-off is said just before the end, and must not look like a
  // crash because it was said in between.
  const bool gone = machine_->process.gone(Duration::zero());
  std::unique_lock lock(machine_->mutex, std::defer_lock);
  if (gone) lock.lock();
  if (gone || lock.try_lock()) {
    // On a shared monitor an answer may be under way to the epoch thread: then only what was read counts.
    if (gone || machine_->fast || phase_ == Phase::running) (void)machine_->general->drain();
    for (const QmpEvent& event : machine_->general->take_events()) {
      const std::string reason = text_member(event.data, "reason");
      if (event.name == "RESET") {
        // Firmware resets the machine once more on its way: one reboot, told once.
        if (!events.empty() && events.back().kind == EventKind::rebooted) continue;
        events.push_back({EventKind::rebooted, "the guest was reset (" + reason + ")"});
      } else if (event.name == "GUEST_PANICKED") {
        events.push_back({EventKind::panicked, "the guest's system panicked"});
      } else if (reason == "guest-panic") {  // A QEMU that was told to end then.
        events.push_back({EventKind::powered_off, "the guest's system panicked, and QEMU ended"});
      } else if (reason.starts_with("guest-")) {
        events.push_back({EventKind::powered_off, "the guest powered itself off (" + reason + ")"});
      }
    }
  }
  if (gone && !exit_told_.exchange(true)) {
    const std::string words = machine_->process.last_words();
    events.push_back({EventKind::exited, "QEMU (pid " + std::to_string(pid()) + ") ended" +
                                             (words.empty() ? std::string() : ": " + words)});
  }
  return events;
}

}  // namespace remusd::guest::qemu
