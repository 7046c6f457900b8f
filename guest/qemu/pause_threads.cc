// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/pause_threads.h"

#include <charconv>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace remusd::guest::qemu {
namespace {

// QEMU names its threads when it is started with -name debug-threads=on, as we do.
constexpr std::string_view kMonitor = "IO mon_iothread", kVcpu = "CPU 0/";

template <typename Take>
void for_each_thread(int pid, Take take) {
  std::error_code gone;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", gone)) {
    const std::string text = task.path().filename();
    int thread = 0;
    if (std::from_chars(text.data(), text.data() + text.size(), thread).ec != std::errc()) continue;
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    take(thread, name);
  }
}

}  // namespace

std::vector<int> pause_threads(int pid) {
  std::vector<int> threads;
  for_each_thread(pid, [&](int thread, const std::string& name) {
    if (thread == pid || name == kMonitor) threads.push_back(thread);
  });
  return threads;
}

int vcpu_thread(int pid) {
  int found = 0;
  for_each_thread(pid, [&](int thread, const std::string& name) {
    if (name.starts_with(kVcpu)) found = thread;
  });
  return found;
}

}  // namespace remusd::guest::qemu
