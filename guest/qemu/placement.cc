// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/placement.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>

namespace remusd::guest::qemu {
namespace {

// proc(5), /proc/PID/stat: field 39 is the processor; the name, which may have spaces, is field 2.
constexpr int kProcessorAfterName = 37;

}  // namespace

Placement::Placement(int pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/stat";
  stat_.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

Placement::~Placement() {
  if (avoided_ < 0 || thread_ != ::gettid()) return;
  (void)::sched_setaffinity(0, sizeof allowed_, &allowed_);
}

Placement::Placement(Placement&& other) noexcept {
  *this = std::move(other);
}

Placement& Placement::operator=(Placement&& other) noexcept {
  std::swap(stat_, other.stat_);
  std::swap(thread_, other.thread_);
  std::swap(avoided_, other.avoided_);
  std::swap(allowed_, other.allowed_);
  return *this;
}

int Placement::main_processor() const {
  std::array<char, 1024> text{};
  const ssize_t got = ::pread(stat_.get(), text.data(), text.size(), 0);
  if (got <= 0) return -1;
  std::string_view rest(text.data(), static_cast<size_t>(got));
  rest.remove_prefix(std::min(rest.rfind(')') + 1, rest.size()));
  for (int field = 0; field < kProcessorAfterName; ++field) {
    const size_t space = rest.find(' ');
    if (space == std::string_view::npos) return -1;
    rest.remove_prefix(space + 1);
  }
  int processor = -1;
  const auto parsed = std::from_chars(rest.data(), rest.data() + rest.size(), processor);
  return parsed.ec == std::errc() ? processor : -1;
}

void Placement::stand_apart() {
  if (!stat_) return;
  const int processor = main_processor();
  if (processor < 0 || processor == avoided_ || processor >= CPU_SETSIZE) return;
  if (avoided_ < 0) {
    if (::sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) return;
    thread_ = ::gettid();
  }
  cpu_set_t apart = allowed_;
  CPU_CLR(processor, &apart);
  if (CPU_COUNT(&apart) == 0 || ::sched_setaffinity(0, sizeof apart, &apart) != 0) return;
  avoided_ = processor;
}

}  // namespace remusd::guest::qemu
