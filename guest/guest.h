// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a guest is to the engine. Drivers: guest/sim (built in, deterministic) and guest/qemu.
//
// A Guest is a virtual machine that runs here. A Standby is the same machine waiting on the backup; its
// memory is the committed image itself, so that promotion moves no RAM. Restoring a Standby yields a Guest.
//
//   waiting --load()--> loaded --run()--> spent        waiting --restore_and_run()--> spent
//
// States of a Guest and what may be called:
//
//   running --pause()--> paused --resume()--> running --halt()--> standing --let_run()--> running
//
// collect_dirty() and reading memory() are allowed in all, save() while running or standing. destroy() is
// allowed always and is final. Threads: the capture calls (prepare_pause, pause, save, resume, halt, let_run,
// collect_dirty, assume_written, start_tracking, stop_tracking, base_stream) are made by one thread at a
// time: the epoch thread, or for it while it sleeps. facts(), memory(), destroy() and take_events() may be
// called from any thread. A call that touches the hypervisor has a deadline of its own and returns timed_out
// or unavailable rather than hang; after that the guest's state is unknown and only destroy() is allowed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/pages.h"
#include "ckpt/status.h"
#include "guest/definition.h"
#include "guest/endpoints.h"
#include "guest/facts.h"
#include "guest/residue.h"

namespace remusd::guest {

/// What a guest did by itself, outside our orders.
enum class EventKind { rebooted, powered_off, panicked, exited };
struct Event {
  EventKind kind;
  std::string detail;  // one line for the log
};

class Guest {
 public:
  virtual ~Guest() = default;

  virtual const Facts& facts() const = 0;
  virtual const std::vector<NicEndpoint>& nics() const = 0;
  virtual const std::vector<DiskEndpoint>& disks() const { return no_disks(); }
  /// The whole RAM image, mapped shared; lives as long as the Guest. size() is a multiple of kPageSize.
  virtual std::span<const std::byte> memory() const = 0;
  /// Hypervisor process, or 0 when there is none (sim).
  virtual int pid() const = 0;

  /// Plants dirty tracking. The first collect_dirty() after it returns every page that may not be zero.
  virtual Status start_tracking() = 0;
  /// Which thread of ours the hypervisor waits for in a pause: while it is tracked, that one runs where the
  /// hypervisor's own do. Before start_tracking(); it must outlive the tracking.
  virtual void served_by(int /*thread*/) {}
  /// Removes it; the guest runs at full speed again, also one that a failure left paused. Harmless when none
  /// is planted.
  virtual Status stop_tracking() = 0;
  /// "async (userfaultfd WP_ASYNC + PAGEMAP_SCAN)", "sync (…)", "sim" or "none"; for status.
  virtual std::string tracker_name() const = 0;
  /// Replaces *dirty by the pages written since the last call, and arms them again. The caller copies them
  /// after this returns: a page that is written meanwhile is reported again by the next call.
  virtual Status collect_dirty(PageSet* dirty) = 0;
  /// These pages are written all the time: until this or start_tracking() is called again, collect_dirty()
  /// has them in each result, written or not, which spares the guest what noticing costs. REQUIRES: it has
  /// had them in one before.
  virtual void assume_written(const PageSet& pages) = 0;

  /// Between two pauses: begins what can be begun of the next pause(), which tells of a failure. No waiting.
  virtual void prepare_pause() {}
  /// Stops all vCPUs; when it returns no instruction of the guest runs and no device writes its memory. Sets
  /// the saving of device state going, which may run beside collect_dirty() and copying.
  virtual Status pause() = 0;
  /// Lets it run again, once its device state is saved; the caller need not wait for that.
  virtual Status resume() = 0;
  /// Device state as of the last pause(), once it was resumed. The span is valid until the next pause(). A
  /// state that could not be saved is told here, not by resume().
  virtual Result<std::span<const std::byte>> save() = 0;
  /// Stops all vCPUs as pause() does, and for good: its device state has been saved when this returns.
  virtual Status halt();
  /// A guest that stands runs again.
  virtual Status let_run();
  /// The floor of any checkpoint, for comparison: stops, saves and continues the guest by the hypervisor's
  /// own orders, each given after the answer to the one before, and captures nothing. How long it stood.
  virtual Result<Duration> plain_pause();

  /// What the backup needs once and not per epoch (ROM contents, for QEMU); opaque to the engine. May be
  /// called only while running; pauses the guest for some milliseconds and lets it run again.
  virtual Result<std::vector<std::byte>> base_stream() = 0;

  /// Ends the guest at once, without asking it, and waits until it is gone.
  virtual Status destroy() = 0;
  /// What is left of its memory, once destroy() has returned; empty when there is nothing to hand over.
  /// memory() must not be used any more.
  virtual Residue take_memory() { return {}; }
  /// Asks the guest's own system to power off (ACPI button); does not wait.
  virtual Status power_button() = 0;
  /// Events since the last call, oldest first. Never blocks.
  virtual std::vector<Event> take_events() = 0;
  /// Sends the network announcements that the hypervisor itself offers. Best effort.
  virtual Status announce() = 0;
};

class Standby {
 public:
  virtual ~Standby() = default;

  virtual const Facts& facts() const = 0;
  virtual const std::vector<NicEndpoint>& nics() const = 0;
  virtual const std::vector<DiskEndpoint>& disks() const { return no_disks(); }
  /// The committed image, mapped shared and writable. All zero when the Standby is made.
  virtual std::span<std::byte> memory() = 0;
  virtual int pid() const = 0;
  /// Why it could not be promoted any more, such as that its process has ended. Cheap, never blocks.
  virtual Status alive() const { return {}; }

  // Promotion. On failure the Standby can only be destroyed.

  /// Loads `base` (from Guest::base_stream) and `device` (from Guest::save) over memory(), and lets the guest
  /// stand: whatever can be wrong with them is told here. Both spans are read during the call only; memory()
  /// must not be written any more.
  virtual Status load(std::span<const std::byte> base, std::span<const std::byte> device) = 0;
  /// Lets run what was loaded. On success the Standby is spent and its resources belong to the Guest.
  virtual Result<std::unique_ptr<Guest>> run() = 0;
  /// Both, by the shortest way.
  virtual Result<std::unique_ptr<Guest>> restore_and_run(std::span<const std::byte> base,
                                                         std::span<const std::byte> device);
  virtual Status destroy() = 0;
  /// As Guest's.
  virtual Residue take_memory() { return {}; }
};

/// Where a driver may put its sockets and logs, and how it is to behave on this host.
struct DriverOptions {
  std::string runtime_dir;  // sockets; absolute; short enough for sun_path
  std::string qemu_binary = "qemu-system-x86_64";
  std::string tracker = "auto";  // "auto", "async", "sync"
  int qmp_timeout_ms = 5000;
};

/// What disks() of the guest or of its standby will be, for those who serve them.
Result<std::vector<DiskEndpoint>> disks_of(const Definition& definition, const DriverOptions& options);
/// Starts the guest and lets it run. The definition has been validated.
Result<std::unique_ptr<Guest>> start(const Definition& definition, const DriverOptions& options);
/// Completes the definition of a guest that already runs (attach_qmp) from the guest itself: what the peer
/// needs to know of it. Changes nothing.
Result<Definition> describe(const Definition& definition, const DriverOptions& options);
/// Takes over a guest that already runs (attach_qmp); the definition is one that describe() completed. Its
/// process is not ours: destroy() ends it, dropping the Guest does not.
Result<std::unique_ptr<Guest>> attach(const Definition& definition, const DriverOptions& options);
/// Takes over a guest that an earlier daemon of this host started or promoted, from the same definition and
/// options, and left running as process `pid`. It is ours again, as after start(). Changes nothing when it
/// fails.
Result<std::unique_ptr<Guest>> adopt(const Definition& definition, const DriverOptions& options, int pid);
/// Makes a Standby that waits for its promotion. Network cards are not connected to anything yet.
Result<std::unique_ptr<Standby>> prepare(const Definition& definition, const DriverOptions& options);

}  // namespace remusd::guest
