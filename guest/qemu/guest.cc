// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

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

std::string_view ahead(std::string_view command) {
  return command.substr(0, command.size() - 1);
}

}  // namespace

QemuGuest::QemuGuest(std::unique_ptr<Machine> machine) : machine_(std::move(machine)) {
  sends_ahead_ = machine_->fast != nullptr && machine_->fast->parses_ahead();
}

QemuGuest::~QemuGuest() {
  if (machine_->process.gone(Duration::zero())) return;
  if (phase_ == Phase::paused) (void)resume();
  (void)stop_tracking();
  if (device_fdset_ < 0) return;
  const std::lock_guard lock(machine_->mutex);
  (void)machine_->general->call("remove-fd", {{"fdset-id", device_fdset_}});
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
  REMUSD_TRY(open_device_file());
  REMUSD_ASSIGN(tracker_, plant_tracker(machine_->process.pid(), machine_->ram.range, machine_->tracker,
                                        [this](int fd) { return give_fd(fd); }));
  tracker_name_ = tracker_->name();
  priority_ = PausePriority(pid());
  first_collect_ = true;
  return {};
}

Status QemuGuest::stop_tracking() {
  tracker_.reset();
  tracker_name_ = "none";
  priority_ = {};
  if (tracker_fdsets_.empty() || machine_->process.gone(Duration::zero())) return {};
  const std::lock_guard lock(machine_->mutex);
  for (const int64_t set : tracker_fdsets_) {
    (void)machine_->general->call("remove-fd", {{"fdset-id", set}});
  }
  tracker_fdsets_.clear();
  return {};
}

std::string QemuGuest::tracker_name() const {
  return tracker_name_;
}

Status QemuGuest::collect_dirty(PageSet* dirty) {
  if (!tracker_) return {Code::invalid, "collect dirty pages: tracking has not been started"};
  REMUSD_TRY(tracker_->collect(dirty));
  if (!first_collect_) return {};
  // After the tracker was asked: a page that is populated later is in its next answer.
  REMUSD_TRY(populated_pages(machine_->ram.file.get(), machine_->facts.memory_bytes, &populated_));
  merge_pages(populated_, dirty);
  PageSet().swap(populated_);
  first_collect_ = false;
  return {};
}

Status QemuGuest::open_device_file() {
  if (device_file_) return {};
  ScopedFd memory(::memfd_create("remusd-device-state", MFD_CLOEXEC));
  if (!memory) return Status::from_errno("make a file for the device state");
  if (::ftruncate(memory.get(), kMaxDeviceBytes) != 0)
    return Status::from_errno("size the device state's file");
  REMUSD_ASSIGN(device_, Mapping::shared(memory.get(), kMaxDeviceBytes, false, "the device state"));
  const std::string path = "/proc/self/fd/" + std::to_string(memory.get());
  ScopedFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file) return Status::from_errno("open the device state's file for writing");
  const std::lock_guard lock(machine_->mutex);
  REMUSD_ASSIGN(const json answer, machine_->general->call("add-fd", nullptr, file.get()));
  if (!answer.is_object() || !answer.value("fdset-id", json()).is_number_integer()) {
    return {Code::corrupt, "QMP add-fd: the answer names no set"};
  }
  device_fdset_ = answer["fdset-id"].get<int64_t>();
  save_command_ = R"({"execute":"xen-save-devices-state","arguments":{"filename":"/dev/fdset/)" +
                  std::to_string(device_fdset_) + R"(","live":false}})";
  device_file_ = std::move(file);
  return {};
}

Status QemuGuest::pause() {
  REMUSD_ASSERT(phase_ == Phase::running, "only a running guest is paused");
  REMUSD_TRY(open_device_file());
  if (::lseek(device_file_.get(), 0, SEEK_SET) != 0)
    return Status::from_errno("rewind the device state's file");
  const auto lock = lock_pause_monitor();
  Qmp* qmp = pause_monitor();
  std::string commands(stop_ahead_ ? kLastByte : kStop);
  commands += save_command_;
  if (sends_ahead_) commands += ahead(kCont);
  stop_ahead_ = false;
  phase_ = Phase::paused;
  save_outstanding_ = true;
  if (Status status = qmp->write(commands); !status.ok()) return machine_->explain(status);
  return machine_->explain(qmp->await_ok());
}

Status QemuGuest::await_save() {
  if (!save_outstanding_) return save_status_;
  const auto lock = lock_pause_monitor();
  save_outstanding_ = false;
  save_status_ = pause_monitor()->await_ok();
  return save_status_;
}

Result<std::span<const std::byte>> QemuGuest::save() {
  REMUSD_ASSERT(device_file_.valid(), "device state is that of a pause");
  if (Status status = await_save(); !status.ok()) {
    return machine_->explain(status).with_context("save the device state");
  }
  const off_t size = ::lseek(device_file_.get(), 0, SEEK_CUR);
  if (size <= 0 || static_cast<uint64_t>(size) > kMaxDeviceBytes) {
    return Status(Code::exhausted, "the device state has " + std::to_string(size) + " bytes; between 1 and " +
                                       std::to_string(kMaxDeviceBytes) + " can be carried");
  }
  return std::span<const std::byte>(device_.data(), static_cast<size_t>(size));
}

Status QemuGuest::resume() {
  REMUSD_ASSERT(phase_ == Phase::paused, "only a paused guest is resumed");
  {
    const auto lock = lock_pause_monitor();
    Qmp* qmp = pause_monitor();
    // QEMU takes its commands in order: it goes on as soon as it has saved, without another word from here.
    if (Status status = qmp->write(sends_ahead_ ? kLastByte : kCont); !status.ok())
      return machine_->explain(status);
    if (std::exchange(save_outstanding_, false)) save_status_ = qmp->await_ok();
    if (Status status = qmp->await_ok(); !status.ok()) return machine_->explain(status);
    phase_ = Phase::running;
    if (sends_ahead_) {
      REMUSD_TRY(qmp->write(ahead(kStop)));
      stop_ahead_ = true;
    }
  }
  if (++resumes_ % kDrainEvery == 0) drain_general();
  return {};
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

Status QemuGuest::power_button() {
  const std::lock_guard lock(machine_->mutex);
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
  if (const std::unique_lock lock(machine_->mutex, std::try_to_lock); lock.owns_lock()) {
    // On a shared monitor an answer may be under way to the epoch thread: then only what was read counts.
    if (machine_->fast || !save_outstanding_) (void)machine_->general->drain();
    for (const QmpEvent& event : machine_->general->take_events()) {
      const std::string reason = text_member(event.data, "reason");
      if (event.name == "RESET") {
        // Firmware resets the machine once more on its way: one reboot, told once.
        if (!events.empty() && events.back().kind == EventKind::rebooted) continue;
        events.push_back({EventKind::rebooted, "the guest was reset (" + reason + ")"});
      } else if (event.name == "GUEST_PANICKED" || reason == "guest-panic") {
        events.push_back({EventKind::panicked, "the guest's system panicked"});
      } else if (reason.starts_with("guest-")) {
        events.push_back({EventKind::powered_off, "the guest powered itself off (" + reason + ")"});
      }
    }
  }
  if (machine_->process.gone(Duration::zero()) && !exit_told_.exchange(true)) {
    const std::string words = machine_->process.last_words();
    events.push_back({EventKind::exited, "QEMU (pid " + std::to_string(pid()) + ") ended" +
                                             (words.empty() ? std::string() : ": " + words)});
  }
  return events;
}

}  // namespace remusd::guest::qemu
