// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Processes to be tracked: a forked child whose threads write what the test tells them to, and a real QEMU.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "ckpt/pages.h"
#include "ckpt/scoped_fd.h"
#include "guest/qemu/tracker.h"
#include "tests/patience.h"

namespace remusd::guest::qemu::tracked {

using std::chrono::microseconds;
using std::chrono::steady_clock;

inline constexpr int kThreads = 4;

inline void futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
  static_cast<void>(::syscall(SYS_futex, word, operation, value, nullptr, nullptr, 0));
}

enum class Op : uint32_t { none, write, scribble, read_file, discard, punch, load, quit };

/// Orders for one thread of the victim. `asked` counts orders, `done` those carried out.
struct alignas(64) Desk {
  std::atomic<uint32_t> asked{0};
  std::atomic<uint32_t> done{0};
  std::atomic<uint32_t> stop{0};  // ends `scribble`
  std::atomic<uint64_t> written{0};
  std::atomic<int> thread_id{0};
  Op op = Op::none;
  uint64_t first = 0, count = 0, step = 1, value = 0;
};
struct Control {
  std::array<Desk, kThreads> desks;
  std::atomic<int> alive{0};
};

/// A process with `pages` of shared memory and kThreads threads at their desks. Killed and reaped at the end.
class Victim {
 public:
  /// `user`: whom it runs as; 0 leaves it all its rights.
  explicit Victim(uint64_t pages, uid_t user = 0) : pages_(pages) {
    memory_fd_.reset(::memfd_create("victim-ram", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(memory_fd_.get(), static_cast<off_t>(pages * kPageSize)), 0);
    void* mapped = map();
    ram_ = {reinterpret_cast<uint64_t>(mapped), pages * kPageSize};
    void* shared =
        ::mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    control_ = new (shared) Control;
    pid_ = ::fork();
    if (pid_ == 0) {
      if (user != 0 && ::setresuid(user, user, user) != 0) ::_exit(8);
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      control_->alive = 1;
      for (int i = 1; i < kThreads; ++i) {
        std::thread([this, i] { serve(control_->desks[static_cast<size_t>(i)]); }).detach();
      }
      serve(control_->desks[0]);
      ::_exit(0);
    }
    EXPECT_TRUE(eventually([&] { return control_->alive == 1; }));
    // The same pages, but not the mapping that is tracked: an observer's view.
    view_ = static_cast<std::byte*>(mapped);
  }
  ~Victim() {
    kill_and_reap();
    ::munmap(control_, sizeof(Control));
    ::munmap(view_, ram_.bytes);
  }
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;

  int pid() const { return pid_; }
  TrackedRange ram() const { return ram_; }
  int file() const { return memory_fd_.get(); }
  uint64_t pages() const { return pages_; }
  std::byte* view() { return view_; }
  Desk& desk(int thread) { return control_->desks[static_cast<size_t>(thread)]; }

  void ask(int thread, Op op, uint64_t first = 0, uint64_t count = 1, uint64_t step = 1, uint64_t value = 1) {
    Desk& to = desk(thread);
    to.op = op;
    to.first = first;
    to.count = count;
    to.step = step;
    to.value = value;
    to.stop = 0;
    to.asked.fetch_add(1);
    futex(&to.asked, FUTEX_WAKE, 1);
  }
  bool answered(int thread) { return desk(thread).done == desk(thread).asked; }
  void do_it(int thread, Op op, uint64_t first = 0, uint64_t count = 1, uint64_t step = 1,
             uint64_t value = 1) {
    ask(thread, op, first, count, step, value);
    ASSERT_TRUE(eventually([&] { return answered(thread); })) << "the victim hangs";
  }
  bool alive() {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
  }
  void kill_and_reap() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  void* map() const {
    return ::mmap(nullptr, pages_ * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd_.get(), 0);
  }

  /// In the victim.
  void serve(Desk& mine) {
    mine.thread_id = static_cast<int>(::syscall(SYS_gettid));
    while (true) {
      uint32_t done = mine.done;
      while (mine.asked == done) futex(&mine.asked, FUTEX_WAIT, done);
      carry_out(mine);
      mine.done = done + 1;
    }
  }
  // The victim plays a guest, whose stores race as they please.
  __attribute__((no_sanitize("thread"))) void carry_out(Desk& mine) {
    auto* memory = reinterpret_cast<std::byte*>(ram_.address);
    auto word = [&](uint64_t page) {
      return reinterpret_cast<volatile uint64_t*>(memory + page * kPageSize);
    };
    const uint64_t end = mine.first + mine.count * mine.step;
    switch (mine.op) {
      case Op::none:
        return;
      case Op::write:
        for (uint64_t page = mine.first; page < end; page += mine.step) *word(page) = mine.value;
        return;
      case Op::load:
        for (uint64_t page = mine.first; page < end; page += mine.step) mine.written += *word(page) & 1;
        return;
      case Op::scribble: {
        // Pages at random, often the same ones; `value` is the thread's own word in a page and its seed.
        uint64_t state = mine.value * 0x9e3779b97f4a7c15u + 1;
        for (uint64_t sequence = 1; mine.stop == 0; ++sequence) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          const uint64_t spread = (state >> 20) % 4 == 0 ? pages_ : std::min<uint64_t>(pages_, 32);
          word((state >> 33) % spread)[mine.value] = sequence;
          mine.written = sequence;
        }
        return;
      }
      case Op::read_file: {
        // The kernel stores into the memory for us.
        const int zero = ::open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        const ssize_t got = ::read(zero, memory + mine.first * kPageSize, mine.count * kPageSize);
        ::close(zero);
        if (got != static_cast<ssize_t>(mine.count * kPageSize)) ::_exit(3);
        return;
      }
      case Op::discard:
        if (::madvise(memory + mine.first * kPageSize, mine.count * kPageSize, MADV_DONTNEED) != 0)
          ::_exit(4);
        return;
      case Op::punch:
        if (::fallocate(memory_fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(mine.first * kPageSize),
                        static_cast<off_t>(mine.count * kPageSize)) != 0) {
          ::_exit(5);
        }
        return;
      case Op::quit:
        ::_exit(0);
    }
  }

  const uint64_t pages_;
  ScopedFd memory_fd_;
  TrackedRange ram_;
  Control* control_ = nullptr;
  std::byte* view_ = nullptr;
  int pid_ = -1;
};

/// QEMU with a BIOS and nothing else; QMP on its standard streams.
class Qemu {
 public:
  Qemu() {
    int in[2], out[2];
    EXPECT_EQ(::pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    const std::string debug = "file:" + firmware_log_;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(in[0], 0);
      ::dup2(out[1], 1);
      ::execlp("qemu-system-x86_64", "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-object",
               "memory-backend-memfd,id=ram,size=64M,share=on", "-machine", "pc,memory-backend=ram",
               "-nodefaults", "-display", "none", "-vga", "none", "-qmp", "stdio", "-debugcon", debug.c_str(),
               "-global", "isa-debugcon.iobase=0x402", nullptr);
      ::_exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    to_.reset(in[1]);
    from_.reset(out[0]);
  }
  ~Qemu() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::unlink(firmware_log_.c_str());
  }
  Qemu(const Qemu&) = delete;
  Qemu& operator=(const Qemu&) = delete;

  int pid() const { return pid_; }
  /// Reads lines until one has `key`; empty at the deadline or the end.
  std::string wait_line(const std::string& key) {
    const auto end = steady_clock::now() + kPatience;
    while (steady_clock::now() < end) {
      if (const size_t at = buffer_.find('\n'); at != std::string::npos) {
        const std::string line = buffer_.substr(0, at);
        buffer_.erase(0, at + 1);
        if (line.find(key) != std::string::npos) return line;
        continue;
      }
      pollfd wait{from_.get(), POLLIN, 0};
      std::array<char, 4096> bytes{};
      if (::poll(&wait, 1, 1000) <= 0) continue;
      const ssize_t got = ::read(from_.get(), bytes.data(), bytes.size());
      if (got <= 0) return {};
      buffer_.append(bytes.data(), static_cast<size_t>(got));
    }
    return {};
  }
  std::string command(const std::string& name) {
    const std::string line = "{\"execute\":\"" + name + "\"}\n";
    EXPECT_EQ(::write(to_.get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
    return wait_line("\"return\"");
  }
  /// How often the firmware has come to its end. SeaBIOS that is reset in its first milliseconds may hang for
  /// good, tracked or not: let it finish before the next reset.
  int firmware_ends() const {
    std::ifstream log(firmware_log_);
    int ends = 0;
    for (std::string line; std::getline(log, line);) ends += line.find("No bootable device") != line.npos;
    return ends;
  }
  TrackedRange ram() const {
    std::ifstream maps("/proc/" + std::to_string(pid_) + "/maps");
    for (std::string line; std::getline(maps, line);) {
      uint64_t begin = 0, end = 0;
      if (line.find("/memfd:") != std::string::npos &&
          std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) == 2 && end - begin == 64u << 20) {
        return {begin, end - begin};
      }
    }
    return {};
  }

 private:
  const std::string firmware_log_ =
      testing::TempDir() + "remusd-firmware-" + std::to_string(::getpid()) + ".log";
  int pid_ = -1;
  ScopedFd to_, from_;
  std::string buffer_;
};

}  // namespace remusd::guest::qemu::tracked
