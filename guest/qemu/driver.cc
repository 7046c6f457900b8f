// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/driver.h"

#include <unistd.h>

#include <array>

#include "guest/qemu/attached.h"
#include "guest/qemu/guest.h"
#include "guest/qemu/machine.h"
#include "guest/qemu/standby.h"

namespace remusd::guest::qemu {
namespace {

Result<std::string> directory_of(int pid) {
  const std::string link = "/proc/" + std::to_string(pid) + "/cwd";
  std::array<char, 4096> path{};
  const ssize_t size = ::readlink(link.c_str(), path.data(), path.size());
  if (size < 0) return Status::from_errno("read '" + link + "'");
  return std::string(path.data(), static_cast<size_t>(size));
}

}  // namespace

Result<std::unique_ptr<Guest>> start(const Definition& definition, const DriverOptions& options) {
  REMUSD_ASSIGN(auto machine, launch(definition, options, Role::primary));
  return std::unique_ptr<Guest>(std::make_unique<QemuGuest>(std::move(machine)));
}

Result<Definition> describe(const Definition& definition, const DriverOptions& options) {
  const Duration timeout = std::chrono::milliseconds(options.qmp_timeout_ms);
  REMUSD_ASSIGN(const auto qmp, Qmp::connect(definition.attach_qmp, timeout, timeout));
  REMUSD_ASSIGN(const int pid, qmp->peer_pid());
  REMUSD_ASSIGN(const auto argv, command_line_of(pid));
  REMUSD_ASSIGN(const std::string directory, directory_of(pid));
  Definition out = definition;
  REMUSD_TRY(describe_command(argv, directory, &out));
  REMUSD_ASSIGN(const auto backends, qmp->call("query-memdev"));
  if (backends.is_array() && backends.size() == 1 && backends[0].is_object() &&
      backends[0].value("size", nlohmann::json()).is_number_unsigned()) {
    out.memory_mib = backends[0]["size"].get<uint64_t>() >> 20;
  }
  REMUSD_TRY(complete_and_validate(&out));
  return out;
}

Result<std::unique_ptr<Guest>> attach(const Definition& definition, const DriverOptions& options) {
  Definition described = definition;
  if (described.attach_command.empty()) {
    REMUSD_ASSIGN(described, qemu::describe(definition, options));
  }
  REMUSD_ASSIGN(auto machine, take_over(described, options));
  return std::unique_ptr<Guest>(std::make_unique<QemuGuest>(std::move(machine)));
}

Result<std::unique_ptr<Guest>> adopt(const Definition& definition, const DriverOptions& options, int pid) {
  REMUSD_ASSIGN(auto machine, rejoin(definition, options, pid));
  return std::unique_ptr<Guest>(std::make_unique<QemuGuest>(std::move(machine)));
}

Result<std::unique_ptr<Standby>> prepare(const Definition& definition, const DriverOptions& options) {
  REMUSD_ASSIGN(auto machine, launch(definition, options, Role::standby));
  return std::unique_ptr<Standby>(std::make_unique<QemuStandby>(std::move(machine)));
}

}  // namespace remusd::guest::qemu
