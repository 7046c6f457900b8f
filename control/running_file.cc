// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/running_file.h"

#include <unistd.h>

#include <fstream>
#include <sstream>

namespace remusd::control {
namespace {

std::string path_of(const std::string& runtime_dir, const std::string& vm) {
  return runtime_dir + "/" + vm + ".pid";
}

// Field 22 of /proc/PID/stat: tells a process from a later one with the same number. Empty when it is gone or
// a zombie.
std::string start_time(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');  // The name may hold spaces.
  if (name_end == std::string::npos) return "";
  std::istringstream fields(text.substr(name_end + 1));
  std::string field, state;
  fields >> state;
  for (int number = 4; number <= 22; ++number) fields >> field;
  return state == "Z" ? "" : field;
}

}  // namespace

Status check_not_running(const std::string& runtime_dir, const std::string& vm) {
  std::ifstream file(path_of(runtime_dir, vm));
  int pid = 0;
  std::string started;
  if (!(file >> pid >> started) || pid <= 0 || start_time(pid) != started) return {};
  return {Code::unsafe, "start " + vm + ": it already runs here as process " + std::to_string(pid) +
                            ", which this daemon did not start; take it over with [attach], or end it"};
}

void remember_running(const std::string& runtime_dir, const std::string& vm, int pid) {
  if (pid <= 0) return forget_running(runtime_dir, vm);
  std::ofstream(path_of(runtime_dir, vm)) << pid << " " << start_time(pid) << "\n";
}

void forget_running(const std::string& runtime_dir, const std::string& vm) {
  ::unlink(path_of(runtime_dir, vm).c_str());
}

}  // namespace remusd::control
