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

Status QemuStandby::load(int stream) {
  Qmp* qmp = machine_->general.get();
  qmp->watch("RESUME");
  REMUSD_TRY(qmp->call("getfd", {{"fdname", "remusd-in"}}, stream).status());
  REMUSD_TRY(qmp->call("migrate-incoming", {{"uri", "fd:remusd-in"}}).status());
  // The saved state says that the guest ran, so QEMU lets it run as soon as it is loaded.
  REMUSD_TRY(qmp->await_watched(Clock::now() + kLoadTimeout).status());
  qmp->watch({});
  return {};
}

Result<std::unique_ptr<Guest>> QemuStandby::restore_and_run(std::span<const std::byte> base,
                                                            std::span<const std::byte> device) {
  REMUSD_ASSERT(machine_, "the standby is not spent");
  REMUSD_ASSIGN(const std::vector<std::byte> composed, compose(base, device));
  // A file needs no thread that feeds it.
  const ScopedFd stream(::memfd_create("remusd-promotion", MFD_CLOEXEC));
  if (!stream) return Status::from_errno("make a file for the stream");
  REMUSD_TRY(write_all(stream.get(), composed));
  if (::lseek(stream.get(), 0, SEEK_SET) != 0) return Status::from_errno("rewind the stream");
  {
    const std::unique_lock lock(machine_->mutex);
    if (Status status = load(stream.get()); !status.ok()) {
      return machine_->explain(status).with_context("promote the standby");
    }
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
