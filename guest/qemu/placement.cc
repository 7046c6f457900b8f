// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/placement.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>

#include "guest/qemu/pause_threads.h"

namespace remusd::guest::qemu {
namespace {

// proc(5), /proc/PID/stat: field 39 is the processor; the name, which may have spaces, is field 2.
constexpr int kProcessorAfterName = 37;

/// As a daemon leaves it that was killed while it kept a thread away from the vCPU's processor.
bool lacks_one(const cpu_set_t& some, const cpu_set_t& all) {
  cpu_set_t both;
  CPU_AND(&both, &some, &all);
  return CPU_EQUAL(&both, &some) && CPU_COUNT(&some) + 1 == CPU_COUNT(&all);
}

bool may_run_on(int thread, const cpu_set_t& processors) {
  return ::sched_setaffinity(thread, sizeof processors, &processors) == 0;
}

ScopedFd open_stat(int pid, int thread) {
  const std::string path = "/proc/" + std::to_string(pid) + "/task/" + std::to_string(thread) + "/stat";
  return ScopedFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

/// The one on which the thread of this stat ran last, or -1.
int processor_of(int stat) {
  std::array<char, 1024> text{};
  const ssize_t got = ::pread(stat, text.data(), text.size(), 0);
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

}  // namespace

Placement::Placement(int pid, int server) : pid_(pid), server_(server) {
  const int thread = vcpu_thread(pid);
  if (thread == 0) return;
  vcpu_ = open_stat(pid, thread);
  main_ = open_stat(pid, pid);
}

Placement::~Placement() {
  if (threads_.empty()) return;
  if (threads_.back().id == ::gettid()) {
    constexpr sched_param kNone{};
    (void)::sched_setscheduler(0, SCHED_OTHER, &kNone);
  } else {
    threads_.pop_back();  // It may have ended, and its number be another's.
  }
  for (const Thread& thread : threads_)
    (void)::sched_setaffinity(thread.id, sizeof thread.allowed, &thread.allowed);
}

Placement::Placement(Placement&& other) noexcept {
  *this = std::move(other);
}

Placement& Placement::operator=(Placement&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(server_, other.server_);
  std::swap(vcpu_, other.vcpu_);
  std::swap(main_, other.main_);
  std::swap(threads_, other.threads_);
  std::swap(ours_, other.ours_);
  return *this;
}

int Placement::main_processor() const {
  const int processor = stands_apart() ? processor_of(main_.get()) : -1;
  return processor == ours_ ? -1 : processor;
}

/// Where all of them may run by themselves.
bool Placement::remember() {
  if (!threads_.empty()) return true;
  cpu_set_t of_vcpu;
  if (::sched_getaffinity(vcpu_thread(pid_), sizeof of_vcpu, &of_vcpu) != 0) return false;
  std::vector<Thread> threads;
  for (const int id : pause_threads(pid_)) threads.push_back({id, {}});
  if (server_ != 0) threads.push_back({server_, {}});
  for (Thread& thread : threads) {
    if (::sched_getaffinity(thread.id, sizeof thread.allowed, &thread.allowed) != 0) return false;
    if (lacks_one(thread.allowed, of_vcpu)) thread.allowed = of_vcpu;
  }
  Thread epoch{::gettid(), {}};
  if (::sched_getaffinity(0, sizeof epoch.allowed, &epoch.allowed) != 0) return false;
  threads.push_back(epoch);
  threads_ = std::move(threads);
  return true;
}

void Placement::stand_apart() {
  if (!vcpu_) return;
  const int processor = processor_of(vcpu_.get());
  if (processor < 0 || processor == ours_ || processor >= CPU_SETSIZE || !remember()) return;
  ours_ = -1;
  const Thread& epoch = threads_.back();
  if (!CPU_ISSET(processor, &epoch.allowed)) return;
  std::vector<cpu_set_t> elsewhere;
  for (size_t i = 0; i + 1 < threads_.size(); ++i) {
    elsewhere.push_back(threads_[i].allowed);
    CPU_CLR(processor, &elsewhere.back());
    if (CPU_COUNT(&elsewhere.back()) == 0) return;
  }
  for (size_t i = 0; i < elsewhere.size(); ++i) {
    if (!may_run_on(threads_[i].id, elsewhere[i])) return;
  }
  cpu_set_t this_one;
  CPU_ZERO(&this_one);
  CPU_SET(processor, &this_one);
  if (!may_run_on(epoch.id, this_one)) return;
  ours_ = processor;
  const sched_param least{::sched_get_priority_min(SCHED_FIFO)};
  (void)::sched_setscheduler(epoch.id, SCHED_FIFO | SCHED_RESET_ON_FORK, &least);
}

}  // namespace remusd::guest::qemu
