// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/guest.h"

#include "guest/qemu/command.h"
#include "guest/qemu/driver.h"
#include "guest/sim/driver.h"

namespace remusd::guest {
namespace {

bool is_sim(const Definition& definition) {
  REMUSD_ASSERT(definition.driver == "sim" || definition.driver == "qemu",
                "the definition has been validated");
  return definition.driver == "sim";
}

}  // namespace

// A driver whose pause() saves at once, and lasts as long as it is wanted, needs nothing more.
Status Guest::halt() {
  return pause();
}

Status Guest::let_run() {
  return resume();
}

Result<Duration> Guest::plain_pause() {
  const Time began = Clock::now();
  REMUSD_TRY(pause());
  REMUSD_TRY(resume());
  return Clock::now() - began;
}

Result<std::unique_ptr<Guest>> Standby::restore_and_run(std::span<const std::byte> base,
                                                        std::span<const std::byte> device) {
  REMUSD_TRY(load(base, device));
  return run();
}

const std::vector<DiskEndpoint>& no_disks() {
  static const std::vector<DiskEndpoint> kNone;
  return kNone;
}

Result<std::vector<DiskEndpoint>> disks_of(const Definition& definition, const DriverOptions& options) {
  if (is_sim(definition)) return no_disks();
  return qemu::disk_endpoints(definition, options);
}

Result<std::unique_ptr<Guest>> start(const Definition& definition, const DriverOptions& options) {
  return is_sim(definition) ? sim::start(definition, options) : qemu::start(definition, options);
}

Result<Definition> describe(const Definition& definition, const DriverOptions& options) {
  if (is_sim(definition)) return Status(Code::unsupported, "a sim guest cannot be attached to: start it");
  return qemu::describe(definition, options);
}

Result<std::unique_ptr<Guest>> attach(const Definition& definition, const DriverOptions& options) {
  return is_sim(definition) ? sim::attach(definition, options) : qemu::attach(definition, options);
}

Result<std::unique_ptr<Guest>> adopt(const Definition& definition, const DriverOptions& options, int pid) {
  if (is_sim(definition)) return Status(Code::unsupported, "a sim guest ends with its daemon");
  return qemu::adopt(definition, options, pid);
}

Result<std::unique_ptr<Standby>> prepare(const Definition& definition, const DriverOptions& options) {
  return is_sim(definition) ? sim::prepare(definition, options) : qemu::prepare(definition, options);
}

}  // namespace remusd::guest
