// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/priority.h"

#include <sys/resource.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <string>

#include "ckpt/thread.h"

namespace remusd::guest::qemu {
namespace {

// QEMU names its threads when it is started with -name debug-threads=on, as we do.
constexpr const char* kMonitorThread = "IO mon_iothread";

bool carries_out_pauses(const std::filesystem::path& task, int thread, int pid) {
  std::string name;
  std::getline(std::ifstream(task / "comm"), name);
  return thread == pid || name == kMonitorThread;
}

}  // namespace

PausePriority::PausePriority(int pid) {
  std::error_code gone;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", gone)) {
    const std::string text = task.path().filename();
    int thread = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), thread).ec != std::errc()) continue;
    if (!carries_out_pauses(task.path(), thread, pid)) continue;
    errno = 0;
    const int nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(thread));
    if (errno == 0 && ::setpriority(PRIO_PROCESS, static_cast<id_t>(thread), urgent_nice()) == 0)
      before_.emplace_back(thread, nice);
  }
}

PausePriority::~PausePriority() {
  for (const auto& [thread, nice] : before_)
    (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(thread), nice);
}

}  // namespace remusd::guest::qemu
