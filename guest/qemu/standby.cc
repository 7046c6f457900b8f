// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/standby.h"

#include <sys/mman.h>
#include <unistd.h>

#include "guest/qemu/guest.h"
#include "guest/qemu/stream.h"

namespace remusd::guest::qemu {
namespace {

constexpr Duration kLoadTimeout = std::chrono::seconds(10);

Status write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return Status::from_errno("write the stream for promotion");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

}  // namespace

QemuStandby::~QemuStandby() {
  (void)destroy();
}

const Facts& QemuStandby::facts() const {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  return machine_->facts;
}

const std::vector<NicEndpoint>& QemuStandby::nics() const {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  return machine_->nics;
}

const std::vector<DiskEndpoint>& QemuStandby::disks() const {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  return machine_->disks;
}

std::span<std::byte> QemuStandby::memory() {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  return machine_->ram.mapping.bytes();
}

int QemuStandby::pid() const {
  return machine_ ? machine_->process.pid() : 0;
}

Status QemuStandby::alive() const {
  if (!machine_ || !machine_->process.gone(Duration::zero())) return {};
  return machine_->ended();
}

Status QemuStandby::feed(std::span<const std::byte> base, std::span<const std::byte> device,
                         const char* event) {
  REMUSD_ASSIGN(const std::vector<std::byte> composed, compose(base, device));
  // A file needs no thread that feeds it.
  const ScopedFd stream(::memfd_create("remusd-promotion", MFD_CLOEXEC));
  if (!stream) return Status::from_errno("make a file for the stream");
  REMUSD_TRY(write_all(stream.get(), composed));
  if (::lseek(stream.get(), 0, SEEK_SET) != 0) return Status::from_errno("rewind the stream");
  Qmp* qmp = machine_->general.get();
  qmp->watch(event);
  REMUSD_TRY(qmp->call("getfd", {{"fdname", "remusd-in"}}, stream.get()).status());
  return qmp->call("migrate-incoming", {{"uri", "fd:remusd-in"}}).status();
}

Status QemuStandby::await_loaded() {
  const Time deadline = Clock::now() + kLoadTimeout;
  for (;;) {
    REMUSD_ASSIGN(const QmpEvent event, machine_->general->await_watched(deadline));
    if (text_member(event.data, "status") == "completed") return {};
    // After "failed" it ends, with its last words, which say why.
  }
}

Status QemuStandby::check_stands() {
  REMUSD_ASSIGN(const nlohmann::json answer, machine_->general->call("query-status"));
  const std::string status = text_member(answer, "status");
  if (status == "paused") return {};
  return {Code::io, "QEMU is '" + status + "' after it loaded the device state, not paused"};
}

Status QemuStandby::load(std::span<const std::byte> base, std::span<const std::byte> device) {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  const std::unique_lock lock(machine_->mutex);
  const auto load = [&]() -> Status {
    Qmp* qmp = machine_->general.get();
    // The saved state says that the guest ran. "stop" given to a QEMU that waits: the guest stays paused
    // then.
    REMUSD_TRY(qmp->call("stop").status());
    const nlohmann::json events{{"capability", "events"}, {"state", true}};
    REMUSD_TRY(qmp->call("migrate-set-capabilities", {{"capabilities", {events}}}).status());
    REMUSD_TRY(feed(base, device, "MIGRATION"));
    REMUSD_TRY(await_loaded());
    qmp->watch({});
    return check_stands();
  };
  return machine_->explain(load()).with_context("load the standby");
}

Result<std::unique_ptr<Guest>> QemuStandby::run() {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  {
    const std::unique_lock lock(machine_->mutex);
    if (const Status status = machine_->general->call("cont").status(); !status.ok()) {
      return machine_->explain(status).with_context("let the standby run");
    }
  }
  return std::unique_ptr<Guest>(std::make_unique<QemuGuest>(std::move(machine_)));
}

Result<std::unique_ptr<Guest>> QemuStandby::restore_and_run(std::span<const std::byte> base,
                                                            std::span<const std::byte> device) {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  {
    const std::unique_lock lock(machine_->mutex);
    Status status = feed(base, device, "RESUME");
    // The saved state says that the guest ran, so QEMU lets it run as soon as it is loaded.
    if (status.ok()) status = machine_->general->await_watched(Clock::now() + kLoadTimeout).status();
    if (!status.ok()) return machine_->explain(status).with_context("promote the standby");
    machine_->general->watch({});
  }
  return std::unique_ptr<Guest>(std::make_unique<QemuGuest>(std::move(machine_)));
}

Status QemuStandby::destroy() {
  return machine_ ? machine_->destroy() : Status();
}

Residue QemuStandby::take_memory() {
  if (!machine_) return {};
  return {std::move(machine_->ram.file), std::move(machine_->ram.mapping)};
}

}  // namespace remusd::guest::qemu
