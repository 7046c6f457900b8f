// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The epoch thread: first sync, then pause, seal, scan, copy, save, resume at a fixed interval.
//
// It ends when it is asked to, when staging is stopped, when the guest does something by itself that ends
// protection, or when the driver fails. It always ends the same way: the guest runs again if it can, tracking
// is removed, and Item::stopped is the last thing in the queue; outcome() may be read after that was taken.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "guest/guest.h"
#include "netbuf/net_buffer.h"
#include "primary/staging.h"

namespace remusd::primary {

struct CaptureOptions {
  Duration interval = std::chrono::milliseconds(25);
  uint64_t sync_threshold_pages = 2048;
  int sync_rounds = 8;
};

class Capture {
 public:
  enum class Ending {
    asked,        // request_stop() or staging stopped
    guest_gone,   // its process ended
    guest_left,   // it powered off or panicked: protection makes no sense any more
    guest_error,  // a driver call failed: the guest's state is unknown
  };
  struct Outcome {
    Ending ending = Ending::asked;
    Status why;
  };

  Capture(guest::Guest& guest, netbuf::NetBuffer& net, Staging& staging, const CaptureOptions& options);
  /// Stops and joins. A driver call that is under way is waited for (its own deadline bounds it).
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  void start();
  /// From any thread: ends after the epoch that is under way.
  void request_stop();
  const Outcome& outcome() const { return outcome_; }

  /// From any thread.
  uint64_t sync_total_pages() const { return sync_total_pages_; }
  uint64_t stretched_epochs() const { return stretched_epochs_; }
  std::string tracker_name() const;

 private:
  void run();
  Status protect();
  Status first_sync();
  Status epoch(uint64_t number);
  /// The pause itself; *paused tells whether the guest still stands when it fails.
  Status paused_part(uint64_t number, EpochSlot* slot, bool* paused);
  bool copy(const PageSet& pages, uint64_t epoch, bool skip_zero, bool* waited, uint64_t* copied);
  void flush(bool wake);
  bool wait_until(Time when);
  bool guest_goes_on();
  Status stopped();
  void finish(Ending ending, Status why);

  guest::Guest& guest_;
  netbuf::NetBuffer& net_;
  Staging& staging_;
  const CaptureOptions options_;

  // Epoch thread only.
  PageSet dirty_;
  Chunk* chunk_ = nullptr;  // being filled
  bool base_wanted_ = true;
  bool late_ = false;            // the grid point of the next epoch was missed
  bool unwinding_ = false;       // stopped() was returned
  std::vector<std::byte> base_;  // goes with the next epoch
  Outcome outcome_;

  std::atomic<uint64_t> sync_total_pages_{0};
  std::atomic<uint64_t> stretched_epochs_{0};
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::string tracker_name_ = "none";
  std::thread thread_;
};

}  // namespace remusd::primary
