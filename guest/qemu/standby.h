// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A QEMU that waits for a migration stream (guest/guest.h has the contract). Its RAM file is the committed
// image itself, so that the stream has only ROMs and device state in it.
#pragma once

#include <memory>

#include "guest/guest.h"
#include "guest/qemu/machine.h"

namespace remusd::guest::qemu {

class QemuStandby : public Standby {
 public:
  explicit QemuStandby(std::unique_ptr<Machine> machine) : machine_(std::move(machine)) {}
  /// Ends the process unless it has become a Guest's.
  ~QemuStandby() override;

  const Facts& facts() const override;
  const std::vector<NicEndpoint>& nics() const override;
  const std::vector<DiskEndpoint>& disks() const override;
  std::span<std::byte> memory() override;
  int pid() const override;
  Status alive() const override;
  Status load(std::span<const std::byte> base, std::span<const std::byte> device) override;
  Result<std::unique_ptr<Guest>> run() override;
  Result<std::unique_ptr<Guest>> restore_and_run(std::span<const std::byte> base,
                                                 std::span<const std::byte> device) override;
  Status destroy() override;
  Residue take_memory() override;

 private:
  /// Composes the stream and has QEMU read it. Returns when `event` came.
  Status feed(std::span<const std::byte> base, std::span<const std::byte> device, const char* event);
  Status await_loaded();
  Status check_stands();

  std::unique_ptr<Machine> machine_;  // null once spent
};

}  // namespace remusd::guest::qemu
