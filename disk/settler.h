// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Brings to shared storage what a tap keeps of held disks, once it may: one thread ("settle") that writes
// logs in their order, all that wait at once, then flushes the files that were written, then lets the tap
// forget them. A log that was written in part is written again from its beginning; only the last of them
// counts for each byte, so that doing it twice does no harm.
//
// It holds the files' locks but while the right to run is being decided, and after it was lost: then nothing
// of this host is on its way any more, and somebody else may have them.
//
// A write or flush that fails breaks its disk (tap.h): the guest was told that it is done.
#pragma once

#include <functional>
#include <thread>

#include "disk/medium.h"
#include "disk/tap.h"

namespace remusd::disk {

struct SettlerOptions {
  Media disks;  // by number; those that are not held are not used
  /// Gives the locks of the held files up, or takes them again.
  std::function<void()> unlock;
  std::function<Status()> lock;
  /// Nothing is kept any more.
  std::function<void()> drained;
};

class Settler {
 public:
  /// The tap outlives it.
  Settler(Tap& tap, SettlerOptions options);
  /// Writes what is still to be written after the right to run was won; what may not be written is dropped.
  ~Settler();
  Settler(const Settler&) = delete;
  Settler& operator=(const Settler&) = delete;

 private:
  void run();
  void write(const Tap::Logs& logs);
  bool write_log(const EpochLog& log);
  void flush();
  void take_back();
  void break_disk(size_t disk, const Status& why);

  Tap& tap_;
  const SettlerOptions options_;
  uint32_t unflushed_ = 0, broken_ = 0;  // disks
  std::thread thread_;
};

}  // namespace remusd::disk
