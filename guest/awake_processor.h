// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "ckpt/scoped_fd.h"

namespace remusd::guest {

/// Where Linux tells what a processor may do (sysfs-devices-power, pm_qos_resume_latency_us).
inline constexpr char kProcessors[] = "/sys/devices/system/cpu";

/// Keeps a processor of this host from sleeping: its idle loop polls while this holds it. In a pause threads
/// wake each other six to eight times, each 20 to 60 us later on a virtual machine's processor that sleeps,
/// and what a deep sleep takes on a physical one. It costs that processor's power: hold it in pauses only.
/// One thread. Best effort: without the right to it, or where Linux has no such switch, nothing happens.
class AwakeProcessor {
 public:
  AwakeProcessor() = default;
  /// `record` is a file that tells what give_back_processors() must do when this process is killed while it
  /// holds one; removed at the end.
  explicit AwakeProcessor(std::string record, std::string processors = kProcessors);
  ~AwakeProcessor();
  AwakeProcessor(AwakeProcessor&& other) noexcept { *this = std::move(other); }
  AwakeProcessor& operator=(AwakeProcessor&& other) noexcept;

  /// Which one, or -1: none. Not while it is held. Cheap when nothing has changed.
  void choose(int processor);
  /// From now on; nothing when somebody else keeps it awake already, or has changed the setting since
  /// choose().
  void hold();
  /// It may sleep again, as before.
  void release();

 private:
  std::string record_, processors_;
  int processor_ = -1;
  ScopedFd setting_;
  std::string before_;  // what the setting is without us
  bool held_ = false;
};

/// What processes that were killed still hold, by their records in this directory; removes these.
void give_back_processors(const std::string& directory, const std::string& processors = kProcessors);

}  // namespace remusd::guest
