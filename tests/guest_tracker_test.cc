// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The same expectations of both trackers, on a forked child with a shared memory file and threads that write
// what the test tells them to.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ckpt/scoped_fd.h"
#include "guest/qemu/tracker.h"
#include "tests/assert_ok.h"
#include "tests/guest_tracker_victim.h"

namespace remusd::guest::qemu {
namespace {

using namespace tracked;  // NOLINT(google-build-using-namespace): the test world of this file
using testing::ElementsAre;
using testing::IsEmpty;

/// A tracker that is told of the memory file need not look at all memory.
struct Planted {
  TrackerKind kind;
  bool told_file;
};

class TrackerTest : public testing::TestWithParam<Planted> {
 protected:
  Result<std::unique_ptr<Tracker>> try_plant(Victim& victim,
                                             const std::function<Result<int>(int fd)>& give_fd = nullptr) {
    return plant_tracker(victim.pid(), victim.ram(), GetParam().told_file ? victim.file() : -1,
                         GetParam().kind, give_fd);
  }
  std::unique_ptr<Tracker> plant(Victim& victim) {
    auto tracker = try_plant(victim);
    if (!tracker.ok()) {
      ADD_FAILURE() << tracker.status().message();
      return nullptr;
    }
    return *std::move(tracker);
  }
  PageSet collect(Tracker& tracker) {
    PageSet dirty;
    const Status status = tracker.collect(&dirty);
    EXPECT_TRUE(status.ok()) << status.message();
    return dirty;
  }
};

std::string kind_name(const testing::TestParamInfo<Planted>& planted) {
  if (planted.param.kind == TrackerKind::sync) return "sync";
  return planted.param.told_file ? "async_told_file" : "async";
}
INSTANTIATE_TEST_SUITE_P(Kinds, TrackerTest,
                         testing::Values(Planted{TrackerKind::async, false},
                                         Planted{TrackerKind::async, true},
                                         Planted{TrackerKind::sync, false}),
                         kind_name);

TEST_P(TrackerTest, NamesItself) {
  Victim victim(16);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  EXPECT_EQ(tracker->name().substr(0, 5), GetParam().kind == TrackerKind::async ? "async" : "sync ");
}

TEST_P(TrackerTest, ReportsWhatIsAssumedWrittenOrNotAndNoticesTheRest) {
  Victim victim(4096);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  victim.do_it(0, Op::write, 0, 64);
  victim.do_it(0, Op::write, 700, 2);
  victim.do_it(0, Op::write, 4095);
  collect(*tracker);
  tracker->assume_written({{3, 2}, {700, 1}, {4095, 1}});
  victim.do_it(0, Op::write, 1, 5);
  victim.do_it(1, Op::write, 701);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{1, 5}, PageRange{700, 2}, PageRange{4095, 1}));
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{3, 2}, PageRange{700, 1}, PageRange{4095, 1}));
}

TEST_P(TrackerTest, LosesNoWriteWhenPagesAreAssumedNoMore) {
  Victim victim(64);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  victim.do_it(0, Op::write, 3, 3);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{3, 3}));
  tracker->assume_written({{3, 3}});
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{3, 3}));
  victim.do_it(0, Op::write, 3);  // the process may write it unseen from now on
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{3, 3}));
  victim.do_it(0, Op::write, 3);
  victim.do_it(0, Op::write, 4);
  tracker->assume_written({});
  PageSet dirty = collect(*tracker);
  ASSERT_FALSE(dirty.empty());
  EXPECT_EQ(dirty.front().first, 3u);
  EXPECT_GE(dirty.front().count, 2u);
  EXPECT_THAT(collect(*tracker), IsEmpty());
  victim.do_it(0, Op::write, 3, 3);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{3, 3}));
}

TEST_P(TrackerTest, ReportsExactlyThePagesThatWereWritten) {
  Victim victim(1024);
  victim.do_it(0, Op::write, 0, 512);  // half of it is populated before
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  EXPECT_THAT(collect(*tracker), IsEmpty());
  victim.do_it(0, Op::write, 0);
  victim.do_it(1, Op::write, 5, 3);
  victim.do_it(2, Op::write, 100, 4, 2);
  victim.do_it(3, Op::write, 700, 2);  // never populated before
  victim.do_it(0, Op::write, 1023);
  EXPECT_THAT(collect(*tracker),
              ElementsAre(PageRange{0, 1}, PageRange{5, 3}, PageRange{100, 1}, PageRange{102, 1},
                          PageRange{104, 1}, PageRange{106, 1}, PageRange{700, 2}, PageRange{1023, 1}));
  EXPECT_THAT(collect(*tracker), IsEmpty());
  victim.do_it(1, Op::write, 5);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{5, 1}));
}

TEST_P(TrackerTest, ReadingIsNotWriting) {
  Victim victim(256);
  victim.do_it(0, Op::write, 0, 128);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  victim.do_it(1, Op::load, 0, 256);
  EXPECT_THAT(collect(*tracker), IsEmpty());
  victim.do_it(1, Op::write, 200);  // after it was read and thereby populated
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{200, 1}));
}

TEST_P(TrackerTest, NoticesTheFirstPagesOfUntouchedMemory) {
  Victim victim(16384);  // 64 MiB, of which the middle is populated
  victim.do_it(0, Op::write, 8000, 10);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  EXPECT_THAT(collect(*tracker), IsEmpty());
  victim.do_it(1, Op::write, 511, 2);  // across the end of a page table
  victim.do_it(2, Op::write, 8005);
  victim.do_it(3, Op::write, 16383);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{511, 2}, PageRange{8005, 1}, PageRange{16383, 1}));
  EXPECT_THAT(collect(*tracker), IsEmpty());
  victim.do_it(1, Op::write, 510, 2);  // a neighbour, never populated, and one that was
  victim.do_it(1, Op::write, 4096);    // at the begin of one
  victim.do_it(2, Op::write, 16383);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{510, 2}, PageRange{4096, 1}, PageRange{16383, 1}));
}

TEST_P(TrackerTest, ReportsWritesOfTheKernelForTheProcess) {
  Victim victim(256);
  victim.do_it(0, Op::write, 0, 64);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  victim.do_it(2, Op::read_file, 60, 10);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{60, 10}));
  victim.do_it(2, Op::read_file, 60, 10);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{60, 10}));
}

TEST_P(TrackerTest, ReportsAll64MiBAndEveryOtherPageOfThem) {
  Victim victim(16384);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  victim.do_it(0, Op::write, 0, 16384);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{0, 16384}));
  victim.do_it(0, Op::write, 1, 8192, 2);  // more ranges than one scan's vector holds
  const PageSet odd = collect(*tracker);
  ASSERT_EQ(odd.size(), 8192u);
  for (size_t i = 0; i < odd.size(); ++i) ASSERT_EQ(odd[i], (PageRange{2 * i + 1, 1}));
  EXPECT_THAT(collect(*tracker), IsEmpty());
}

TEST_P(TrackerTest, DoesNotAllocateWhileCapacityLasts) {
  Victim victim(512);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  PageSet dirty;
  dirty.reserve(512);
  const PageRange* data = dirty.data();
  for (int i = 0; i < 3; ++i) {
    victim.do_it(0, Op::write, 0, 256, 2);
    ASSERT_OK(tracker->collect(&dirty));
    EXPECT_EQ(dirty.size(), 256u);
    EXPECT_EQ(dirty.data(), data);
  }
}

TEST_P(TrackerTest, PagesWrittenAfterBeingDiscardedAreReported) {
  Victim victim(2048);
  victim.do_it(0, Op::write, 0, 2048);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  for (const Op op : {Op::discard, Op::punch}) {
    victim.do_it(0, Op::write, 0, 1024);
    EXPECT_GE(page_count(collect(*tracker)), 1024u);
    victim.do_it(0, op, 0, 2048);
    static_cast<void>(collect(*tracker));  // whether dropping counts as a write is not ours to say
    victim.do_it(1, Op::write, 3);
    victim.do_it(1, Op::write, 2047);
    EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{3, 1}, PageRange{2047, 1}));
  }
  // Dirty pages whose table entries go before the collection stay dirty.
  victim.do_it(0, Op::write, 10, 20);
  victim.do_it(0, Op::discard, 10, 20);
  const PageSet dirty = collect(*tracker);
  EXPECT_THAT(dirty, ElementsAre(PageRange{10, 20}));
}

// The contract itself: an observer that copies only collected pages has, whenever the writers rest, exactly
// the memory. Collections run against four writers all the time.
// A collection comes every `stores_between` stores at the soonest: few, and it meets faults on their way.
// `copy` goes on from one call to the next: what was written before it is not collected again.
void observe(Victim& victim, Tracker& tracker, std::vector<std::byte>& copy, int rests,
             int collections_per_rest, uint64_t stores_between) {
  PageSet dirty;
  copy.resize(victim.ram().bytes);
  const auto collect_and_copy = [&] {
    const Status status = tracker.collect(&dirty);
    ASSERT_TRUE(status.ok()) << status.message();
    uint64_t next = 0;
    for (const PageRange& range : dirty) {
      ASSERT_TRUE(range.count > 0 && range.first >= next && range.first + range.count <= victim.pages())
          << range.first << "+" << range.count << " after " << next << ", range " << &range - dirty.data()
          << " of " << dirty.size();
      next = range.first + range.count;
      std::memcpy(copy.data() + range.first * kPageSize, victim.view() + range.first * kPageSize,
                  range.count * kPageSize);
    }
  };
  const auto all_written = [&] {
    uint64_t sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += victim.desk(i).written;
    return sum;
  };
  uint64_t stores = 0, pages = 0;
  for (int rest = 0; rest < rests; ++rest) {
    for (int i = 0; i < kThreads; ++i) {
      victim.desk(i).written = 0;
      victim.ask(i, Op::scribble, 0, 1, 1, static_cast<uint64_t>(rest * kThreads + i) % 512);
    }
    for (int i = 0; i < collections_per_rest; ++i) {
      const uint64_t before = all_written();
      ASSERT_TRUE(eventually([&] { return all_written() >= before + stores_between; })) << "the writers hang";
      ASSERT_NO_FATAL_FAILURE(collect_and_copy());
      pages += page_count(dirty);
    }
    for (int i = 0; i < kThreads; ++i) victim.desk(i).stop = 1;
    for (int i = 0; i < kThreads; ++i) {
      ASSERT_TRUE(eventually([&] { return victim.answered(i); })) << "a writer hangs";
      stores += victim.desk(i).written;
    }
    ASSERT_NO_FATAL_FAILURE(collect_and_copy());
    ASSERT_EQ(std::memcmp(copy.data(), victim.view(), copy.size()), 0) << "a store was lost, rest " << rest;
  }
  std::printf("  %lu stores, %lu pages collected, nothing lost\n", stores, pages);
}

TEST_P(TrackerTest, LosesNoStoreOfFourRunningWritersInLittleMemory) {
  Victim victim(64);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  std::vector<std::byte> copy;
  ASSERT_NO_FATAL_FAILURE(observe(victim, *tracker, copy, 50, 20, 1000));
  observe(victim, *tracker, copy, 50, 200, 1);
}

TEST_P(TrackerTest, LosesNoStoreOfFourRunningWritersInMuchMemory) {
  Victim victim(8192);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  std::vector<std::byte> copy;
  observe(victim, *tracker, copy, 15, 8, 100);
}

TEST_P(TrackerTest, CanBePlantedInARunningProcessAndTakesAllStoresFromThenOn) {
  Victim victim(4096);
  for (int i = 0; i < kThreads; ++i) victim.ask(i, Op::scribble, 0, 1, 1, static_cast<uint64_t>(i));
  std::unique_ptr<Tracker> tracker;
  for (int round = 0; round < 10; ++round) {
    tracker.reset();
    tracker = plant(victim);
    ASSERT_NE(tracker, nullptr);
  }
  std::vector<std::byte> copy(victim.view(), victim.view() + victim.ram().bytes);
  for (int i = 0; i < kThreads; ++i) victim.desk(i).stop = 1;
  for (int i = 0; i < kThreads; ++i) ASSERT_TRUE(eventually([&] { return victim.answered(i); }));
  for (const PageRange& range : collect(*tracker)) {
    std::memcpy(copy.data() + range.first * kPageSize, victim.view() + range.first * kPageSize,
                range.count * kPageSize);
  }
  EXPECT_EQ(std::memcmp(copy.data(), victim.view(), copy.size()), 0);
}

TEST_P(TrackerTest, DestroyingItUnderWritersLeavesThemRunning) {
  Victim victim(8192);
  for (int round = 0; round < 20; ++round) {
    auto tracker = plant(victim);
    ASSERT_NE(tracker, nullptr);
    for (int i = 0; i < kThreads; ++i) victim.ask(i, Op::scribble, 0, 1, 1, static_cast<uint64_t>(i));
    ASSERT_TRUE(eventually([&] { return victim.desk(0).written > 100; }));
    static_cast<void>(collect(*tracker));
    tracker.reset();
    for (int i = 0; i < kThreads; ++i) {
      const uint64_t before = victim.desk(i).written;
      ASSERT_TRUE(eventually([&] { return victim.desk(i).written > before + 1000; })) << "a writer hangs";
      victim.desk(i).stop = 1;
      ASSERT_TRUE(eventually([&] { return victim.answered(i); }));
    }
  }
  EXPECT_TRUE(victim.alive());
}

TEST_P(TrackerTest, DeathOfTheHolderReleasesTheProcess) {
  Victim victim(1024);
  victim.do_it(0, Op::write, 0, 1024);
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const int holder = ::fork();
  if (holder == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto tracker = try_plant(victim);
    const char sign = tracker.ok() ? 'y' : 'n';
    if (::write(ready[1], &sign, 1) != 1) ::_exit(1);
    while (true) ::pause();
  }
  char sign = 0;
  ASSERT_EQ(::read(ready[0], &sign, 1), 1);
  EXPECT_EQ(sign, 'y');
  ASSERT_EQ(::kill(holder, SIGSTOP), 0);
  int stopped = 0;
  ASSERT_EQ(::waitpid(holder, &stopped, WUNTRACED), holder);
  ASSERT_TRUE(WIFSTOPPED(stopped));
  victim.ask(1, Op::write, 0, 1024);  // sync: nobody answers the first of these faults
  if (GetParam().kind == TrackerKind::sync) {
    const std::string tasks = "/proc/" + std::to_string(victim.pid()) + "/task";
    const auto blocked = [&] {
      std::string word;
      std::ifstream(tasks + "/" + std::to_string(victim.desk(1).thread_id) + "/wchan") >> word;
      return word.find("userfault") != std::string::npos;
    };
    EXPECT_TRUE(eventually(blocked)) << "the write was to wait in a fault";
    EXPECT_FALSE(victim.answered(1));
  }
  ASSERT_EQ(::kill(holder, SIGKILL), 0);
  ASSERT_EQ(::waitpid(holder, nullptr, 0), holder);
  EXPECT_TRUE(eventually([&] { return victim.answered(1); })) << "the guest hangs since its protector died";
  // And it can be protected again.
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  victim.do_it(2, Op::write, 17);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{17, 1}));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_P(TrackerTest, ExitOfTheProcessIsACleanError) {
  for (const bool busy : {false, true}) {
    Victim victim(4096);
    auto tracker = plant(victim);
    ASSERT_NE(tracker, nullptr);
    if (busy) victim.ask(1, Op::scribble, 0, 1, 1, 1);
    victim.ask(0, Op::quit);
    PageSet dirty;
    Status status;
    ASSERT_TRUE(eventually([&] {
      status = tracker->collect(&dirty);
      return !status.ok();
    }));
    EXPECT_EQ(status.code(), Code::unavailable) << status.message();
    EXPECT_TRUE(dirty.empty());
    tracker.reset();
    EXPECT_EQ(try_plant(victim).ok(), false);
  }
}

TEST_P(TrackerTest, PlantingTwiceIsRefusedAndHarmsNothing) {
  Victim victim(64);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  const auto second = try_plant(victim);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::exists) << second.status().message();
  victim.do_it(0, Op::write, 7);
  EXPECT_THAT(collect(*tracker), ElementsAre(PageRange{7, 1}));
}

TEST_P(TrackerTest, LeavesNoDescriptorInTheProcess) {
  Victim victim(64);
  auto tracker = plant(victim);
  ASSERT_NE(tracker, nullptr);
  for (int fd = 0; fd < 64; ++fd) {
    std::array<char, 256> target{};
    const std::string link = "/proc/" + std::to_string(victim.pid()) + "/fd/" + std::to_string(fd);
    if (::readlink(link.c_str(), target.data(), target.size() - 1) > 0) {
      EXPECT_EQ(std::string(target.data()).find("userfaultfd"), std::string::npos);
    }
  }
}

TEST_P(TrackerTest, RefusesRangesThatCannotBeTracked) {
  Victim victim(64);
  const auto code = [&](TrackedRange range) {
    return plant_tracker(victim.pid(), range, -1, GetParam().kind, nullptr).status().code();
  };
  const TrackedRange ram = victim.ram();
  EXPECT_EQ(code({ram.address, 0}), Code::invalid);
  EXPECT_EQ(code({ram.address + 1, kPageSize}), Code::invalid);
  EXPECT_EQ(code({0x1000, kPageSize}), Code::invalid);
  EXPECT_EQ(code({ram.address, ram.bytes + (1ull << 40)}), Code::invalid);
  int on_stack = 0;  // private memory
  EXPECT_EQ(code({reinterpret_cast<uint64_t>(&on_stack) / kPageSize * kPageSize, kPageSize}), Code::invalid);
  EXPECT_EQ(plant_tracker(4'000'000, ram, -1, GetParam().kind, nullptr).status().code(), Code::not_found);
}

TEST_P(TrackerTest, UnprivilegedProcessIsGivenTheDevice) {
  const ScopedFd device(::open("/dev/userfaultfd", O_RDWR));
  ASSERT_TRUE(device.valid()) << "needs /dev/userfaultfd (Linux 6.1)";
  Victim victim(256, 65534);
  const auto refused = try_plant(victim);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::denied) << refused.status().message();
  int given = 0;
  auto tracker = try_plant(victim, [&](int fd) -> Result<int> {
    ++given;
    EXPECT_GE(fd, 0);
    return device.get();  // inherited by the victim, under the same number
  });
  ASSERT_TRUE(tracker.ok()) << tracker.status().message();
  EXPECT_EQ(given, 1);
  victim.do_it(1, Op::write, 200, 2);
  victim.do_it(1, Op::read_file, 10, 2);
  EXPECT_THAT(collect(**tracker), ElementsAre(PageRange{10, 2}, PageRange{200, 2}));
  // What giving it fails with is passed on.
  tracker->reset();
  const auto failed = try_plant(victim, [](int) -> Result<int> {
    return Status{Code::timed_out, "no answer"};
  });
  EXPECT_EQ(failed.status().code(), Code::timed_out);
}

TEST_P(TrackerTest, TracksARealQemuAndLeavesItAnswering) {
  Qemu qemu;
  ASSERT_NE(qemu.wait_line("QMP"), "") << "QEMU does not start";
  ASSERT_NE(qemu.command("qmp_capabilities"), "");
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(eventually([&] { return qemu.firmware_ends() == round + 1; }));
    auto tracker = plant_tracker(qemu.pid(), qemu.ram(), -1, GetParam().kind, nullptr);
    ASSERT_TRUE(tracker.ok()) << tracker.status().message();
    // A reset has the BIOS write its tables and the stack again.
    ASSERT_NE(qemu.command("system_reset"), "");
    uint64_t written = 0;
    ASSERT_TRUE(eventually([&] {
      written += page_count(collect(**tracker));
      return written > 50;
    }));
    ASSERT_NE(qemu.command("stop"), "");
    static_cast<void>(collect(**tracker));
    EXPECT_THAT(collect(**tracker), IsEmpty()) << "nothing writes while the guest is stopped";
    ASSERT_NE(qemu.command("cont"), "");
    tracker->reset();
    EXPECT_NE(qemu.command("query-status").find("running"), std::string::npos);
  }
}

TEST(Tracker, AutomaticTakesAsyncHere) {
  Victim victim(64);
  auto tracker = plant_tracker(victim.pid(), victim.ram(), -1, TrackerKind::automatic, nullptr);
  ASSERT_TRUE(tracker.ok()) << tracker.status().message();
  EXPECT_EQ((*tracker)->name(), "async (userfaultfd WP_ASYNC + PAGEMAP_SCAN)");
}

}  // namespace
}  // namespace remusd::guest::qemu
