// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "guest/qemu/inject.h"
#include "guest/qemu/inject_restart.h"
#include "tests/assert_ok.h"
#include "tests/patience.h"

namespace remusd::guest::qemu {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// What a victim tells us; lives in memory that both share.
struct Report {
  std::atomic<int> ready{0};
  std::atomic<int> go{0};
  std::atomic<int> done{0};
  std::atomic<int64_t> result{-1};
  std::atomic<int> error{0};
  std::atomic<int64_t> elapsed_ms{0};
  std::atomic<uint64_t> counter{0};
  std::atomic<uint32_t> futex_word{0};
  std::atomic<int> handled{0};
};

/// A forked child that runs one function; killed and reaped at the end.
class Traced {
 public:
  explicit Traced(const std::function<void(Report&)>& job) {
    void* shared = ::mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    report_ = new (shared) Report;
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      job(*report_);
      report_->done = 1;
      ::_exit(0);
    }
  }
  ~Traced() {
    if (!reaped_) {
      ::kill(pid_, SIGKILL);
      static_cast<void>(wait_exit());
    }
    ::munmap(report_, sizeof(Report));
  }
  Traced(const Traced&) = delete;
  Traced& operator=(const Traced&) = delete;

  int pid() const { return pid_; }
  Report& report() { return *report_; }
  /// The wait status.
  int wait_exit() {
    int status = -1;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    reaped_ = true;
    return status;
  }
  bool blocked_in(long number) const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/syscall");
    std::string word;
    file >> word;
    return word == std::to_string(number);
  }
  char state() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string line;
    std::getline(file, line);
    return line.at(line.rfind(')') + 2);
  }

 private:
  int pid_ = -1;
  bool reaped_ = false;
  Report* report_ = nullptr;
};

/// A call of which the right result is known: the process's own number.
Status inject_getpid(int pid) {
  return run_in_process(pid, kInjectDeadline, [&](Injector& injector) -> Status {
    REMUSD_ASSIGN(const int64_t got, injector.call(SYS_getpid, {}));
    if (got != pid) return {Code::corrupt, "getpid gave " + std::to_string(got)};
    return {};
  });
}

Status inject_userfaultfd(int pid) {
  return run_in_process(pid, kInjectDeadline, [&](Injector& injector) -> Status {
    REMUSD_ASSIGN(const int64_t fd, injector.call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK}));
    if (fd < 0) return {Code::corrupt, "userfaultfd gave " + std::to_string(fd)};
    REMUSD_ASSIGN(const int64_t closed, injector.call(SYS_close, {static_cast<uint64_t>(fd)}));
    if (closed != 0) return {Code::corrupt, "close gave " + std::to_string(closed)};
    return {};
  });
}

template <typename Job>
void timed(Report& report, Job job) {
  const auto begin = steady_clock::now();
  report.ready = 1;
  errno = 0;
  const int64_t result = job();
  report.error = errno;
  report.result = result;
  report.elapsed_ms = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin).count();
}

/// Interrupts the victim some times while it is in system call `number`, or until it is through with it.
void disturb(Traced& victim, long number, int times = 5) {
  const auto waits_or_done = [&] {
    return victim.blocked_in(number) || victim.blocked_in(SYS_restart_syscall) || victim.report().done != 0;
  };
  for (int i = 0; i < times; ++i) {
    ASSERT_TRUE(eventually(waits_or_done)) << "victim never blocked";
    if (victim.report().done != 0) return;
    const Status status = i % 2 == 0 ? inject_getpid(victim.pid()) : inject_userfaultfd(victim.pid());
    // Its wait may have ended just now.
    ASSERT_TRUE(status.ok() || victim.report().done != 0) << status.message();
  }
}

/// Spread over a wait of kWaitMs: one that began anew each time would take far longer than kWaitMs + kLateMs.
constexpr int64_t kWaitMs = 1000;
constexpr int64_t kLateMs = 700;
void disturb_all_along(Traced& victim, long number) {
  for (int i = 0; i < 6; ++i) {
    disturb(victim, number, 2);
    std::this_thread::sleep_for(milliseconds(kWaitMs / 8));
  }
}

void expect_sleep(Traced& victim, int64_t result, int64_t ms) {
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().result, result) << "errno " << victim.report().error;
  EXPECT_EQ(victim.report().error, 0);
  EXPECT_GE(victim.report().elapsed_ms, ms);
  EXPECT_LT(victim.report().elapsed_ms, ms + kLateMs);
}

TEST(Inject, PpollWithTimeoutSleepsItsTimeInAll) {
  Traced victim([](Report& report) {
    timed(report, [] {
      timespec timeout{kWaitMs / 1000, 0};
      return ::ppoll(nullptr, 0, &timeout, nullptr);
    });
  });
  disturb_all_along(victim, SYS_ppoll);
  expect_sleep(victim, 0, kWaitMs);
}

TEST(Inject, NanosleepSleepsItsTimeInAll) {
  Traced victim([](Report& report) {
    timed(report, [] {
      timespec time{kWaitMs / 1000, 0};
      return ::syscall(SYS_nanosleep, &time, nullptr);
    });
  });
  disturb_all_along(victim, SYS_nanosleep);
  expect_sleep(victim, 0, kWaitMs);
}

TEST(Inject, FutexWaitWithTimeoutTimesOutInTime) {
  Traced victim([](Report& report) {
    timed(report, [&] {
      timespec time{kWaitMs / 1000, 0};
      const long got = ::syscall(SYS_futex, &report.futex_word, FUTEX_WAIT, 0, &time, nullptr, 0);
      const bool right = got == -1 && errno == ETIMEDOUT;
      errno = right ? 0 : errno;
      return right ? 0 : got;
    });
  });
  disturb_all_along(victim, SYS_futex);
  expect_sleep(victim, 0, kWaitMs);
}

TEST(Inject, FutexWaitIsWokenAfterwards) {
  Traced victim([](Report& report) {
    timed(report,
          [&] { return ::syscall(SYS_futex, &report.futex_word, FUTEX_WAIT, 0, nullptr, nullptr, 0); });
  });
  disturb(victim, SYS_futex);
  ASSERT_TRUE(eventually([&] {
    return ::syscall(SYS_futex, &victim.report().futex_word, FUTEX_WAKE, 1, nullptr, nullptr, 0) == 1;
  }));
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().result, 0);
}

TEST(Inject, ReadOnAPipeGetsAllDataInOrder) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  Traced victim([&](Report& report) {
    timed(report, [&] {
      int64_t sum = 0;
      for (int i = 0; i < 50; ++i) {
        unsigned char byte = 0;
        if (::read(fds[0], &byte, 1) != 1 || byte != i) return int64_t{-1};
        sum += byte;
        report.counter = static_cast<uint64_t>(i + 1);
      }
      return sum;
    });
  });
  for (unsigned i = 0; i < 50; ++i) {
    ASSERT_TRUE(eventually([&] { return victim.report().counter == i && victim.blocked_in(SYS_read); }));
    disturb(victim, SYS_read, 2);
    const auto byte = static_cast<unsigned char>(i);
    ASSERT_EQ(::write(fds[1], &byte, 1), 1);
  }
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().result, 49 * 50 / 2) << "errno " << victim.report().error;
  ::close(fds[0]);
  ::close(fds[1]);
}

TEST(Inject, EpollWaitSeesNoEintrAndItsEvent) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  Traced victim([&](Report& report) {
    const int epoll = ::epoll_create1(0);
    epoll_event event{EPOLLIN, {}};
    ::epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event);
    timed(report, [&] { return ::syscall(SYS_epoll_wait, epoll, &event, 1, -1); });
  });
  disturb(victim, SYS_epoll_wait);
  ASSERT_EQ(::write(fds[1], "x", 1), 1);
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().result, 1) << "errno " << victim.report().error;
  ::close(fds[0]);
  ::close(fds[1]);
}

/// Many live values in registers, vector ones among them; runs `rounds` rounds or until *stop, whichever is
/// first.
std::pair<uint64_t, uint64_t> churn(uint64_t rounds, Report& report, const std::atomic<int>* stop) {
  uint64_t a = 1, b = 2, c = 3, d = 4, done = 0;
  double x = 1.0;
  for (; done < rounds && (stop == nullptr || *stop == 0); ++done) {
    a = a * 6364136223846793005u + 1;
    b ^= a >> 7;
    c += b;
    d = (d << 5) ^ c;
    x = x * 0.75 + static_cast<double>(d & 0xff);
    report.counter = done;
  }
  return {done, a ^ b ^ c ^ d ^ static_cast<uint64_t>(x * 1000)};
}

TEST(Inject, BusyLoopKeepsItsRegisters) {
  Traced victim([](Report& report) {
    report.ready = 1;
    const auto disturbed = churn(~uint64_t{0}, report, &report.go);
    const auto replayed = churn(disturbed.first, report, nullptr);
    report.result = disturbed == replayed;
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  for (int i = 0; i < 50; ++i) {
    const uint64_t before = victim.report().counter;
    ASSERT_OK(inject_userfaultfd(victim.pid()));
    ASSERT_TRUE(eventually([&] { return victim.report().counter != before; })) << "victim hangs";
  }
  victim.report().go = 1;
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().result, 1) << "a register was spoilt";
}

TEST(Inject, TwoHundredTimesInAProcessWithBusyThreads) {
  Traced victim([](Report& report) {
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&report] {
        while (report.go == 0) {
          report.counter.fetch_add(1);
          if (::getppid() == 0) ::_exit(9);
        }
      });
    }
    report.ready = 1;
    for (auto& thread : threads) thread.join();
    report.result = 0;
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  const auto begin = steady_clock::now();
  for (int i = 0; i < 200; ++i) ASSERT_OK(inject_getpid(victim.pid()));
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - begin).count();
  RecordProperty("us_per_injection", static_cast<int>(us / 200));
  std::printf("injection: %ld us each\n", static_cast<long>(us / 200));
  victim.report().go = 1;
  ASSERT_EQ(victim.wait_exit(), 0);
}

TEST(Inject, SignalThatComesWhileHeldIsHandledAfterwards) {
  static Report* seen;
  Traced victim([](Report& report) {
    seen = &report;
    struct sigaction action {};
    action.sa_handler = [](int) { seen->handled = 1; };
    ::sigaction(SIGUSR1, &action, nullptr);
    timed(report, [] { return ::pause(); });
  });
  ASSERT_TRUE(eventually([&] { return victim.blocked_in(SYS_pause); }));
  ASSERT_OK(run_in_process(victim.pid(), kInjectDeadline, [&](Injector& injector) -> Status {
    ::kill(victim.pid(), SIGUSR1);
    REMUSD_ASSIGN(const int64_t got, injector.call(SYS_getpid, {}));
    EXPECT_EQ(got, victim.pid());
    EXPECT_EQ(victim.report().handled, 0);
    return {};
  }));
  // pause() ends with EINTR as it must: rewinding it by hand would have it wait for ever.
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().handled, 1);
  EXPECT_EQ(victim.report().result, -1);
  EXPECT_EQ(victim.report().error, EINTR);
}

TEST(Inject, SignalMaskOfSigsuspendSurvives) {
  static Report* seen;
  Traced victim([](Report& report) {
    seen = &report;
    struct sigaction action {};
    action.sa_handler = [](int) { seen->handled = 1; };
    ::sigaction(SIGUSR1, &action, nullptr);
    sigset_t blocked, none;
    ::sigemptyset(&none);
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR1);
    ::sigprocmask(SIG_BLOCK, &blocked, nullptr);
    timed(report, [&] { return ::sigsuspend(&none); });
    sigset_t after;
    ::sigprocmask(SIG_BLOCK, nullptr, &after);
    report.counter = ::sigismember(&after, SIGUSR1) == 1 && ::sigismember(&after, SIGUSR2) == 0 ? 1 : 0;
  });
  disturb(victim, SYS_rt_sigsuspend);
  EXPECT_EQ(victim.report().handled, 0);
  ::kill(victim.pid(), SIGUSR1);
  ASSERT_EQ(victim.wait_exit(), 0);
  EXPECT_EQ(victim.report().handled, 1);
  EXPECT_EQ(victim.report().counter, 1u) << "its mask was not restored";
}

TEST(Inject, StoppedProcessIsStoppedAgain) {
  Traced victim([](Report& report) {
    report.ready = 1;
    while (report.go == 0) report.counter.fetch_add(1);
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  ::kill(victim.pid(), SIGSTOP);
  ASSERT_TRUE(eventually([&] { return victim.state() == 'T'; }));
  ASSERT_OK(inject_userfaultfd(victim.pid()));
  ASSERT_TRUE(eventually([&] { return victim.state() == 'T'; }));
  ::kill(victim.pid(), SIGCONT);
  victim.report().go = 1;
  ASSERT_EQ(victim.wait_exit(), 0);
}

TEST(Inject, StopSignalThatComesWhileHeldTakesEffectAfterwards) {
  Traced victim([](Report& report) {
    report.ready = 1;
    while (report.go == 0) report.counter.fetch_add(1);
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  ASSERT_OK(run_in_process(victim.pid(), kInjectDeadline, [&](Injector& injector) -> Status {
    ::kill(victim.pid(), SIGSTOP);
    for (int i = 0; i < 3; ++i) {
      REMUSD_ASSIGN(const int64_t got, injector.call(SYS_getpid, {}));
      EXPECT_EQ(got, victim.pid());
    }
    return {};
  }));
  ASSERT_TRUE(eventually([&] { return victim.state() == 'T'; }));
  ::kill(victim.pid(), SIGCONT);
  victim.report().go = 1;
  ASSERT_EQ(victim.wait_exit(), 0);
}

TEST(Inject, ProcessThatDiesMeanwhileIsACleanError) {
  Traced victim([](Report& report) {
    report.ready = 1;
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return victim.blocked_in(SYS_pause); }));
  const Status status = run_in_process(victim.pid(), kInjectDeadline, [&](Injector& injector) -> Status {
    ::kill(victim.pid(), SIGKILL);
    REMUSD_TRY(injector.call(SYS_getpid, {}).status());
    return injector.call(SYS_getpid, {}).status();
  });
  EXPECT_EQ(status.code(), Code::unavailable) << status.message();
  EXPECT_EQ(victim.wait_exit(), SIGKILL) << "the exit must be left for its owner";
}

TEST(Inject, BodyFailureIsReturnedAndTheProcessGoesOn) {
  Traced victim([](Report& report) {
    timed(report, [] {
      timespec time{0, 300'000'000};
      return ::nanosleep(&time, nullptr);
    });
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  const Status status = run_in_process(victim.pid(), kInjectDeadline, [](Injector& injector) -> Status {
    REMUSD_TRY(injector.call(SYS_getpid, {}).status());
    return {Code::corrupt, "on purpose"};
  });
  EXPECT_EQ(status.code(), Code::corrupt);
  expect_sleep(victim, 0, 300);
}

TEST(Inject, RefusesAProcessThatIsNotThere) {
  EXPECT_EQ(inject_getpid(0).code(), Code::not_found);
  EXPECT_EQ(inject_getpid(4'000'000).code(), Code::not_found);
}

TEST(Inject, RefusesATracedProcessAndNamesItsTracer) {
  Traced victim([](Report&) { ::pause(); });
  Traced tracer([&](Report& report) {
    ::ptrace(PTRACE_SEIZE, victim.pid(), 0, 0);
    report.ready = 1;
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return tracer.report().ready == 1; }));
  const Status status = inject_getpid(victim.pid());
  EXPECT_EQ(status.code(), Code::unavailable);
  EXPECT_NE(status.message().find(std::to_string(tracer.pid())), std::string::npos) << status.message();
}

TEST(Inject, RefusesASandboxedProcess) {
  Traced victim([](Report& report) {
    sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    sock_fprog program{1, allow};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    report.ready = 1;
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  const Status status = inject_getpid(victim.pid());
  EXPECT_EQ(status.code(), Code::denied);
  EXPECT_NE(status.message().find("-sandbox"), std::string::npos) << status.message();
}

TEST(Inject, NamesTheRightThatIsMissing) {
  Traced victim([](Report& report) {
    report.ready = 1;
    ::pause();
  });
  ASSERT_TRUE(eventually([&] { return victim.report().ready == 1; }));
  Traced stranger([&](Report& report) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(8);
    const Status status = inject_getpid(victim.pid());
    report.result =
        status.code() == Code::denied && status.message().find("CAP_SYS_PTRACE") != std::string::npos;
  });
  ASSERT_EQ(stranger.wait_exit(), 0);
  EXPECT_EQ(stranger.report().result, 1);
}

TEST(InjectRestart, OnlyStopInterruptedCallsAreMadeToRestart) {
  const auto minus = [](int64_t value) { return static_cast<uint64_t>(-value); };
  EXPECT_EQ(restart_value(SYS_epoll_wait, minus(EINTR)), minus(kRestartNoHandler));
  EXPECT_EQ(restart_value(SYS_read, minus(EINTR)), minus(EINTR));
  EXPECT_EQ(restart_value(SYS_epoll_wait, 3), 3u);
  EXPECT_EQ(restart_value(SYS_ppoll, minus(514)), minus(514));
  EXPECT_EQ(restart_value(~uint64_t{0}, minus(EINTR)), minus(EINTR));
}

}  // namespace
}  // namespace remusd::guest::qemu
