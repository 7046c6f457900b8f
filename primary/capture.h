// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The epoch thread: first sync, then pause, seal, scan, copy, resume, save, as the pacer says (pacer.h).
//
// The order to resume follows the last copied page at once, while the hypervisor may still be saving its
// devices; what it saved is fetched when the guest runs again. Only full chunks are handed over in the pause.
//
// The last epoch of a switchover is another one: the guest does not run on, so that nothing is done twice.
//
// It ends when it is asked to, when staging is stopped, when the guest does something by itself that ends
// protection, or when the driver fails. It always ends the same way: the guest runs again if it can and
// tracking is removed (but for a guest that stands), and Item::stopped is the last thing in the queue;
// outcome() may be read after that was taken.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "disk/copier.h"
#include "guest/guest.h"
#include "netbuf/net_buffer.h"
#include "primary/disks_in_pause.h"
#include "primary/hot_pages.h"
#include "primary/pacer.h"
#include "primary/page_copier.h"
#include "primary/precopy.h"
#include "primary/seed_map.h"
#include "primary/staging.h"

namespace remusd::primary {

struct CaptureOptions {
  PaceOptions pace;
  bool precopy = true;
  uint64_t sync_threshold_pages = 2048;
  int sync_rounds = 8;
  bool seed = false;               // the backup tells what it has: wait for seeded() before the first pass
  disk::Tap* tap = nullptr;        // of the guest's disks, when it has some
  disk::Copier* copier = nullptr;  // and their first sync
  std::function<void(const guest::Event&)> on_event;  // as Callbacks::on_guest_event; may be empty
};

class Capture {
 public:
  enum class Ending {
    asked,        // request_stop() or staging stopped
    guest_gone,   // its process ended
    guest_left,   // it powered off: protection makes no sense any more
    disk_error,   // a disk cannot be copied: the guest goes on, unprotected
    guest_error,  // a driver call failed: the guest's state is unknown
  };
  struct Outcome {
    Ending ending = Ending::asked;
    Status why;
    /// Since when the guest stands after its last epoch; what comes for it is diverted, tracking is planted.
    std::optional<Time> standing;
  };

  Capture(guest::Guest& guest, netbuf::NetBuffer& net, Staging& staging, const CaptureOptions& options);
  /// Stops and joins. A driver call that is under way is waited for (its own deadline bounds it).
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  void start();
  /// From any thread: ends after the epoch that is under way.
  void request_stop();
  /// From any thread: ends after one epoch more, begun at once, after which the guest stands. From its
  /// beginning on `take` gets what comes for the guest.
  void request_last(netbuf::NetBuffer::TakeInput take);
  /// From the ship thread, once, when it is complete.
  void seeded(std::unique_ptr<const SeedMap> seed);
  const Outcome& outcome() const { return outcome_; }

  // From any thread.
  /// An epoch was acknowledged, so long after its pause began.
  void acknowledged(uint64_t epoch, Duration commit);
  uint64_t sync_total_pages() const { return sync_total_pages_; }
  /// Pages that the backup has already, as far as the first pass has come.
  uint64_t matched_pages() const { return page_copier_.matched_pages(); }
  std::string tracker_name() const;

 private:
  void run();
  Status protect();
  bool last_asked();
  Status first_sync();
  Status sync_memory();
  Status disks_done(const Status& status);
  Status take_base();
  Status await_disks(bool* waited);
  std::unique_ptr<const SeedMap> await_seed();
  Status epoch(uint64_t number, EpochReason reason);
  Status last_epoch(uint64_t number);
  Status standing_part(uint64_t number, EpochSlot* slot, const DisksInPause& disks);
  Status precopy(uint64_t number, EpochSample* sample, bool* waited);
  /// The pause itself; *paused tells whether the guest still stands when it fails.
  Status paused_part(uint64_t number, EpochSlot* slot, bool* paused);
  Status take_device_state(EpochSlot* slot);
  void prepare();
  std::optional<EpochReason> wait_due(uint64_t number);
  std::optional<EpochReason> sleep_until_due(uint64_t number, std::unique_lock<std::mutex>& lock);
  void on_output(uint64_t epoch);
  bool stop_asked();
  bool guest_goes_on();
  Status stopped();
  void finish(Ending ending, Status why);

  guest::Guest& guest_;
  netbuf::NetBuffer& net_;
  Staging& staging_;
  const CaptureOptions options_;

  // Epoch thread only.
  Pacer pacer_;
  Precopy precopy_;
  HotPages hot_;
  Time began_{};  // the last pause
  PageSet dirty_, precopied_;
  PageCopier page_copier_;
  bool base_wanted_ = true;
  bool unwinding_ = false;       // stopped() was returned
  std::vector<std::byte> base_;  // goes with the next epoch
  Outcome outcome_;

  std::atomic<uint64_t> sync_total_pages_{0};
  std::atomic<int64_t> commit_ns_{0};  // how long a commit takes at present
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false, last_ = false;
  netbuf::NetBuffer::TakeInput take_input_;  // with last_
  uint64_t output_epoch_ = 0;                // the newest epoch that output waits for, and since when
  Time output_since_{};
  uint64_t acknowledged_epoch_ = 0;
  uint64_t unprepared_ = 0;  // the epoch that is waited for, if the guest is not prepared for its pause; or 0
  std::string tracker_name_ = "none";
  std::unique_ptr<const SeedMap> seed_;  // until the first pass takes it
  std::thread thread_;
};

}  // namespace remusd::primary
