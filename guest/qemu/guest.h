// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A running QEMU as a Guest (guest/guest.h has the contract and the states).
//
// The pause is one QMP command, xen-save-devices-state into a pipe of ours: QEMU stops the guest, waits in it
// for room in the pipe while pages are copied, and lets the guest run on. It reads its monitor byte by byte,
// so with a monitor of our own the command is sent ahead but for its last byte; what the pause then costs is
// that byte.
#pragma once

#include <atomic>
#include <memory>

#include "guest/awake_processor.h"
#include "guest/guest.h"
#include "guest/qemu/machine.h"
#include "guest/qemu/placement.h"
#include "guest/qemu/priority.h"
#include "guest/qemu/tracker.h"

namespace remusd::guest::qemu {

class QemuGuest : public Guest {
 public:
  /// Takes over a QEMU that runs, or stands still by an operator's will.
  explicit QemuGuest(std::unique_ptr<Machine> machine);
  /// Lets the guest run on, without tracking. The process stays.
  ~QemuGuest() override;

  const Facts& facts() const override { return machine_->facts; }
  const std::vector<NicEndpoint>& nics() const override { return machine_->nics; }
  const std::vector<DiskEndpoint>& disks() const override { return machine_->disks; }
  std::span<const std::byte> memory() const override { return machine_->ram.mapping.bytes(); }
  int pid() const override { return machine_->process.pid(); }

  Status start_tracking() override;
  void served_by(int thread) override { server_ = thread; }
  Status stop_tracking() override;
  std::string tracker_name() const override;
  Status collect_dirty(PageSet* dirty) override;
  void assume_written(const PageSet& pages) override;

  void prepare_pause() override;
  Status pause() override;
  Status resume() override;
  Result<std::span<const std::byte>> save() override;
  Status halt() override;
  Status let_run() override;
  Result<Duration> plain_pause() override;
  Result<std::vector<std::byte>> base_stream() override;

  Status destroy() override;
  Residue take_memory() override;
  Status power_button() override;
  std::vector<Event> take_events() override;
  Status announce() override;

 private:
  enum class Phase { running, paused, standing };

  Qmp* pause_monitor() { return machine_->fast ? machine_->fast.get() : machine_->general.get(); }
  /// The lock that the pause's monitor needs; not locked when it is the epoch thread's own.
  std::unique_lock<std::mutex> lock_pause_monitor();
  Status open_save_pipe();
  Status await_stands(Qmp* qmp);
  void let_go();
  Status check_plugged();
  Status take_saved();
  /// The orders of the general monitor, each after the answer to the one before.
  Status order(std::string_view command);
  Status stop_and_save();
  Result<int> give_fd(int fd);
  Status record_migration(int fd);
  void drain_general();

  std::unique_ptr<Machine> machine_;
  std::string tracker_name_ = "none";
  std::unique_ptr<Tracker> tracker_;
  std::vector<int64_t> tracker_fdsets_;
  PausePriority priority_;  // while it is tracked
  Placement placement_;
  AwakeProcessor awake_;  // held from the order to its answer
  int server_ = 0;        // thread; 0: nobody
  bool first_collect_ = false;
  PageSet populated_;

  Phase phase_ = Phase::running;
  bool sends_ahead_ = false;  // we may leave a part of a command in the monitor
  bool save_ahead_ = false;   // save_command_ has been sent but for its last byte
  Status save_status_;        // of the last pause
  std::string save_command_;
  ScopedFd save_pipe_;             // both ends; QEMU opens it by its name
  ScopedFd opened_;                // tells that it does; only for a guest with disks
  std::vector<std::byte> device_;  // the last pause's state is its first device_bytes_
  size_t device_bytes_ = 0;
  size_t checked_bytes_ = 0;  // its length when the devices were last looked at
  uint64_t resumes_ = 0;
  std::atomic<bool> exit_told_{false};
};

}  // namespace remusd::guest::qemu
