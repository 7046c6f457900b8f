// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A QEMU process with its monitors and its RAM: what a running guest and a standby have in common. It moves
// from one to the other at promotion.
//
// Two monitors when we started QEMU: `fast` belongs to the epoch thread alone and needs no lock; `general`
// serves every other call, under `mutex`. An attached QEMU may have only one, which is then `general`.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "guest/guest.h"
#include "guest/qemu/command.h"
#include "guest/qemu/process.h"
#include "guest/qemu/qmp.h"
#include "guest/qemu/ram.h"

namespace remusd::guest::qemu {

struct Machine {
  Process process;
  std::mutex mutex;  // general
  std::unique_ptr<Qmp> general;
  std::unique_ptr<Qmp> fast;  // null: there is only `general`
  Ram ram;
  Facts facts;
  std::vector<std::string> devices;  // as the standby will have them: those of the start
  std::vector<NicEndpoint> nics;
  std::vector<DiskEndpoint> disks;
  std::string save_path;               // of the pipe for device states, where QEMU can open it
  std::string awake_path;              // of the record of the processor that pauses keep awake
  std::vector<std::string> own_files;  // sockets and pipes of ours, removed when the process has ended
  TrackerKind tracker = TrackerKind::automatic;

  /// Ends the process (politely, then not) and waits until it is gone. Any thread, also beside other calls.
  Status destroy();
  /// `status` with QEMU's own last words when it has ended.
  Status explain(const Status& status) const;
  /// That it has ended, with its own last words. REQUIRES: it has.
  Status ended() const;
  /// Connects again to monitors that failed, such as by a QEMU that stood still for long. REQUIRES: the lock.
  Status reconnect();
  /// The devices that QEMU has now. REQUIRES: the lock.
  Result<std::vector<std::string>> list_devices();
};

/// Starts QEMU for a guest or a standby and waits until it answers. Ends a forgotten standby of that name.
Result<std::unique_ptr<Machine>> launch(const Definition& definition, const DriverOptions& options,
                                        Role role);

/// Connects to the QEMU at definition.attach_qmp.
Result<std::unique_ptr<Machine>> take_over(const Definition& definition, const DriverOptions& options);

/// Takes over the QEMU that an earlier process launched with the same arguments as `pid` and that runs a
/// guest.
Result<std::unique_ptr<Machine>> rejoin(const Definition& definition, const DriverOptions& options, int pid);

/// The tracker's kind by its name in the configuration.
Result<TrackerKind> tracker_kind(const std::string& name);

}  // namespace remusd::guest::qemu
