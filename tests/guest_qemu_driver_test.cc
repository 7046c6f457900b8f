// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The QEMU driver with a real QEMU. Needs root (tracking and /proc/PID/fd of another process).
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "guest/awake_processor.h"
#include "guest/qemu/process.h"
#include "guest/qemu/qmp.h"
#include "tests/guest_qemu_world.h"

namespace remusd::guest::qemu {
namespace {

double percentile(std::vector<double> values, double part) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(part * static_cast<double>(values.size() - 1))];
}

void report(const char* what, const std::vector<double>& ms) {
  std::printf("[ INFO     ] %s: median %.2f ms, p99 %.2f ms (%zu)\n", what, percentile(ms, 0.5),
              percentile(ms, 0.99), ms.size());
}

void copy(const PageSet& pages, std::span<const std::byte> from, std::span<std::byte> to) {
  for (const PageRange& range : pages) {
    std::memcpy(to.data() + range.first * kPageSize, from.data() + range.first * kPageSize,
                range.count * kPageSize);
  }
}

/// PM QoS of a processor, and what is in there.
std::string setting_of(const std::string& processor) {
  return std::string(kProcessors) + "/cpu" + processor + "/power/pm_qos_resume_latency_us";
}
std::string word_of(const std::string& path) {
  std::string word;
  std::ifstream(path) >> word;
  return word;
}

struct Shape {
  const char* machine;
  uint32_t vcpus;
  const char* nic;
  const char* tracker;
};

class QemuShapes : public ::testing::TestWithParam<Shape> {
 protected:
  Definition definition() const {
    return world_.definition(GetParam().machine, GetParam().vcpus, GetParam().nic);
  }
  DriverOptions options(const char* host) const {
    DriverOptions options = world_.options(host);
    options.tracker = GetParam().tracker;
    return options;
  }
  /// A third monitor, for the test.
  Definition with_monitor() const {
    Definition with = definition();
    with.extra_args = {"-chardev", "socket,id=test,path=" + world_.path("test.qmp") + ",server=on,wait=off",
                       "-mon", "chardev=test,mode=control"};
    return with;
  }
  World world_;
};

TEST_P(QemuShapes, AGuestGoesOnInItsStandbyFromTheCommittedStateAndCanReboot) {
  auto started = qemu::start(definition(), options("a"));
  ASSERT_OK(started);
  Guest& primary = **started;
  ASSERT_TRUE(eventually([&] { return world_.boots() == 1 && counter(primary.memory()) > 100; }));

  auto prepared = qemu::prepare(with_monitor(), options("b"));
  ASSERT_OK(prepared);
  Standby& standby = **prepared;
  EXPECT_THAT(differences(primary.facts(), standby.facts()), ::testing::IsEmpty());
  EXPECT_EQ(standby.memory().size(), primary.memory().size());
  EXPECT_TRUE(std::all_of(standby.memory().begin(), standby.memory().end(),
                          [](std::byte b) { return b == std::byte{0}; }));

  ASSERT_OK(primary.start_tracking());
  const auto base = primary.base_stream();
  ASSERT_OK(base);
  std::vector<std::byte> device;
  uint32_t committed = 0;
  PageSet dirty;
  std::vector<double> pauses;
  for (int epoch = 0; epoch < 50; ++epoch) {
    ASSERT_TRUE(counts(primary));
    const Time begin = Clock::now();
    ASSERT_OK(primary.pause());
    ASSERT_OK(primary.collect_dirty(&dirty));
    EXPECT_GT(page_count(dirty), 0u);
    copy(dirty, primary.memory(), standby.memory());
    committed = counter(primary.memory());
    // Nothing may write the memory between stop and resume: neither the guest nor the saving.
    ASSERT_OK(primary.collect_dirty(&dirty));
    EXPECT_EQ(page_count(dirty), 0u);
    ASSERT_EQ(primary.memory().size(), standby.memory().size());
    EXPECT_EQ(std::memcmp(primary.memory().data(), standby.memory().data(), primary.memory().size()), 0)
        << "epoch " << epoch;
    ASSERT_OK(primary.resume());
    pauses.push_back(to_ms(Clock::now() - begin));
    const auto state = primary.save();
    ASSERT_OK(state);
    EXPECT_GT(state->size(), 4096u);
    device.assign(state->begin(), state->end());
  }
  ASSERT_TRUE(counts(primary));
  ASSERT_GT(counter(primary.memory()), committed);
  ASSERT_OK(primary.stop_tracking());
  ASSERT_TRUE(counts(primary));
  ASSERT_OK(primary.destroy());

  ASSERT_EQ(counter(standby.memory()), committed);
  const Time begin = Clock::now();
  auto promoted = standby.restore_and_run(*base, device);
  const double promotion_ms = to_ms(Clock::now() - begin);
  ASSERT_OK(promoted);
  std::printf("[ INFO     ] promotion %.2f ms, base %zu bytes, device state %zu bytes\n", promotion_ms,
              base->size(), device.size());
  Guest& replica = **promoted;
  ASSERT_TRUE(counts(replica));
  const uint32_t now = counter(replica.memory());
  EXPECT_GT(now, committed);
  EXPECT_LT(now, committed + 1000000);
  EXPECT_EQ(world_.boots(), 1u);
  ASSERT_OK(replica.announce());

  // It can be protected again: the capture works on the promoted one.
  ASSERT_OK(replica.start_tracking());
  ASSERT_OK(replica.base_stream());
  ASSERT_OK(replica.pause());
  ASSERT_OK(replica.resume());
  ASSERT_OK(replica.save());
  ASSERT_OK(replica.stop_tracking());

  // A reset runs the firmware, which must be there, and that loads the program again.
  const auto monitor =
      Qmp::connect(world_.path("test.qmp"), std::chrono::seconds(20), std::chrono::seconds(20));
  ASSERT_OK(monitor);
  ASSERT_OK((*monitor)->call("system_reset"));
  EXPECT_TRUE(eventually([&] { return world_.boots() == 2; }))
      << "the firmware did not boot the program again";
  EXPECT_TRUE(counts(replica));
  const auto events = replica.take_events();
  ASSERT_THAT(events, ::testing::SizeIs(1));
  EXPECT_EQ(events[0].kind, EventKind::rebooted);
  ASSERT_OK(replica.destroy());
  const auto last = replica.take_events();
  ASSERT_THAT(last, ::testing::SizeIs(1));
  EXPECT_EQ(last[0].kind, EventKind::exited);
}

INSTANTIATE_TEST_SUITE_P(All, QemuShapes,
                         ::testing::Values(Shape{"pc", 1, "virtio-net-pci", "async"},
                                           Shape{"pc", 4, "e1000", "sync"}, Shape{"q35", 1, "e1000", "sync"},
                                           Shape{"q35", 1, "virtio-net-pci-legacy", "sync"},
                                           Shape{"q35", 4, "virtio-net-pci", "async"}),
                         [](const auto& shape) {
                           std::string name = std::string(shape.param.machine) + "_" +
                                              std::to_string(shape.param.vcpus) + "_" + shape.param.nic +
                                              "_" + shape.param.tracker;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(QemuDriver, PauseIsMeasuredAloneAndWithScan) {
  World world;
  auto guest = qemu::start(world.definition(), world.options("a"));
  ASSERT_OK(guest);
  ASSERT_TRUE(counts(**guest));
  std::vector<double> alone, whole;
  PageSet dirty;
  const auto wait = [] { std::this_thread::sleep_for(std::chrono::milliseconds(10)); };
  for (int i = 0; i < 200; ++i) {
    const auto took = (*guest)->plain_pause();
    ASSERT_OK(took);
    alone.push_back(to_ms(*took));
    wait();
  }
  ASSERT_OK((*guest)->start_tracking());
  for (int i = 0; i < 200; ++i) {
    const Time begin = Clock::now();
    ASSERT_OK((*guest)->pause());
    ASSERT_OK((*guest)->collect_dirty(&dirty));
    ASSERT_OK((*guest)->resume());
    whole.push_back(to_ms(Clock::now() - begin));
    ASSERT_OK((*guest)->save());
    (*guest)->prepare_pause();
    wait();
  }
  report("stop, save, cont, each by itself", alone);
  report("a checkpoint's pause, with scan", whole);
  ASSERT_OK((*guest)->destroy());
}

TEST(QemuDriver, APauseKeepsTheProcessorOfQemusMainThreadAwake) {
  cpu_set_t allowed;
  ASSERT_EQ(::sched_getaffinity(0, sizeof allowed, &allowed), 0);
  if (CPU_COUNT(&allowed) < 2) GTEST_SKIP() << "needs two processors";
  if (!std::filesystem::exists(setting_of("0"))) GTEST_SKIP() << "this Linux lets no processor stay awake";
  World world;
  auto started = qemu::start(world.definition(), world.options("a"));
  ASSERT_OK(started);
  Guest& guest = **started;
  ASSERT_OK(guest.start_tracking());
  PageSet dirty;
  std::string processor, before;
  // Others may keep the same one awake, who then are not disturbed: such a pause shows nothing.
  EXPECT_TRUE(eventually([&] {
    EXPECT_TRUE(guest.pause().ok());
    std::ifstream(world.path("a/vm1.awake")) >> processor >> before;
    const bool awake = !before.empty() && word_of(setting_of(processor)) == "n/a";
    EXPECT_TRUE(guest.collect_dirty(&dirty).ok() && guest.resume().ok() && guest.save().ok());
    return awake || testing::Test::HasFailure();
  }));
  EXPECT_TRUE(eventually([&] { return word_of(setting_of(processor)) == before; }));
  ASSERT_OK(guest.stop_tracking());
  EXPECT_FALSE(std::filesystem::exists(world.path("a/vm1.awake")));
  ASSERT_OK(guest.destroy());
}

TEST(QemuDriver, AGuestWhosePauseFailedRunsOnAndCanBeTrackedAgain) {
  World world;
  DriverOptions options = world.options("a");
  options.qmp_timeout_ms = 1000;
  auto started = qemu::start(world.definition(), options);
  ASSERT_OK(started);
  Guest& guest = **started;
  PageSet dirty;
  const auto checkpoint = [&](int times_prepared = 0) {
    for (int i = 0; i < times_prepared; ++i) guest.prepare_pause();
    ASSERT_OK(guest.pause());
    ASSERT_OK(guest.collect_dirty(&dirty));
    ASSERT_OK(guest.resume());
    ASSERT_OK(guest.save());
  };
  for (const bool silent : {true, false, true}) {
    ASSERT_OK(guest.start_tracking());
    for (int i = 0; i < 3; ++i) checkpoint(i);
    guest.prepare_pause();
    if (silent) {  // QEMU stands still for longer than is waited for it.
      ASSERT_EQ(::kill(guest.pid(), SIGSTOP), 0);
      EXPECT_EQ(guest.pause().code(), Code::timed_out);
    } else {  // The pause worked, and what came after it failed.
      ASSERT_OK(guest.pause());
      ASSERT_OK(guest.collect_dirty(&dirty));
    }
    (void)guest.stop_tracking();  // It may fail while QEMU stands still.
    if (silent) {
      ASSERT_EQ(::kill(guest.pid(), SIGCONT), 0);
    }
    ASSERT_TRUE(counts(guest)) << "it must not stay paused";
  }
  ASSERT_OK(guest.start_tracking());
  checkpoint();
  ASSERT_OK(guest.destroy());
}

TEST(QemuDriver, ADeviceThatIsPluggedInFailsTheNextSave) {
  World world;
  Definition definition = world.definition();
  definition.extra_args = {"-chardev",
                           "socket,id=test,path=" + world.path("test.qmp") + ",server=on,wait=off", "-mon",
                           "chardev=test,mode=control"};
  auto started = qemu::start(definition, world.options("a"));
  ASSERT_OK(started);
  Guest& guest = **started;
  ASSERT_OK(guest.start_tracking());
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(guest.pause());
    ASSERT_OK(guest.resume());
    ASSERT_OK(guest.save());
  }
  auto monitor = Qmp::connect(world.path("test.qmp"), std::chrono::seconds(10), std::chrono::seconds(10));
  ASSERT_OK(monitor);
  ASSERT_OK((*monitor)->call("device_add", {{"driver", "virtio-balloon-pci"}, {"id", "plugged"}}));
  ASSERT_OK(guest.pause());
  ASSERT_OK(guest.resume());
  const auto state = guest.save();
  EXPECT_EQ(state.status().code(), Code::unsafe);
  EXPECT_THAT(state.status().message(), ::testing::HasSubstr("plugged (child<virtio-balloon-pci>)"));
  ASSERT_OK(guest.stop_tracking());
  ASSERT_TRUE(counts(guest)) << "it must run on";
}

TEST(QemuDriver, TheGateNamesWhatDiffers) {
  World world;
  const auto prepared = qemu::prepare(world.definition("pc", 1), world.options("a"));
  ASSERT_OK(prepared);
  Definition other = world.definition("q35", 2, "e1000");
  other.cpu = "qemu64,-cx16";
  other.memory_mib = 128;
  const auto differing = qemu::prepare(other, world.options("b"));
  ASSERT_OK(differing);
  const auto lines = differences((*prepared)->facts(), (*differing)->facts());
  using ::testing::Contains;
  using ::testing::HasSubstr;
  EXPECT_THAT(lines, Contains(HasSubstr("machine type: primary 'pc-i440fx-7.2', backup 'pc-q35-7.2'")));
  EXPECT_THAT(lines, Contains(HasSubstr("vcpus: primary 1, backup 2")));
  EXPECT_THAT(lines, Contains(HasSubstr("memory bytes")));
  EXPECT_THAT(lines, Contains("cpu feature cx16: primary has it, backup does not"));
  EXPECT_THAT(lines, Contains("device only on primary: /machine/peripheral/nic0 virtio-net-pci pci.0:03.0"));
  EXPECT_THAT(lines, Contains("device only on backup: /machine/peripheral/nic0 e1000 pcie.0:03.0"));
}

TEST(QemuDriver, AStartThatFailsTellsQemusOwnWords) {
  World world;
  Definition definition = world.definition();
  definition.cpu = "no-such-cpu";
  const auto guest = qemu::start(definition, world.options("a"));
  ASSERT_FALSE(guest.ok());
  EXPECT_THAT(guest.status().message(), ::testing::HasSubstr("unable to find CPU model 'no-such-cpu'"));
  EXPECT_FALSE(std::filesystem::exists(world.path("a/vm1.qmp")));
}

TEST(QemuDriver, AStandbyTellsWhenItsProcessHasEnded) {
  World world;
  auto standby = qemu::prepare(world.definition(), world.options("b"));
  ASSERT_OK(standby);
  ASSERT_OK((*standby)->alive());
  ASSERT_EQ(::kill((*standby)->pid(), SIGKILL), 0);
  ASSERT_TRUE(eventually([&] { return !(*standby)->alive().ok(); }));
  EXPECT_EQ((*standby)->alive().code(), Code::unavailable);
}

TEST(QemuDriver, ALoadedStandbyStandsUntilItIsLetRunAndTheOldGuestMayRunOnInstead) {
  World world;
  auto guest = qemu::start(world.definition(), world.options("a"));
  ASSERT_OK(guest);
  ASSERT_TRUE(counts(**guest));
  const auto base = (*guest)->base_stream();
  ASSERT_OK(base);
  for (const bool lost : {true, false}) {
    auto standby = qemu::prepare(world.definition(), world.options("b"));
    ASSERT_OK(standby);
    ASSERT_OK((*guest)->start_tracking());
    ASSERT_OK((*guest)->halt());
    PageSet dirty;
    ASSERT_OK((*guest)->collect_dirty(&dirty));
    copy(dirty, (*guest)->memory(), (*standby)->memory());
    const auto state = (*guest)->save();
    ASSERT_OK(state);
    const uint32_t committed = counter((*guest)->memory());
    const Time begin = Clock::now();
    ASSERT_OK((*standby)->load(*base, *state));
    const Time loaded = Clock::now();
    ASSERT_OK((*standby)->alive());
    EXPECT_EQ(counter((*standby)->memory()), committed);
    if (lost) {
      ASSERT_OK((*standby)->destroy());
      ASSERT_OK((*guest)->let_run());
      ASSERT_TRUE(counts(**guest));
      continue;
    }
    EXPECT_EQ(counter((*standby)->memory()), committed) << "it stands";
    const Time asked = Clock::now();
    auto running = (*standby)->run();
    ASSERT_OK(running);
    std::printf("[ INFO     ] loaded in %.2f ms, run in %.2f ms\n", to_ms(loaded - begin),
                to_ms(Clock::now() - asked));
    ASSERT_TRUE(counts(**running));
    EXPECT_GT(counter((*running)->memory()), committed);
    // What QEMU said while it loaded is not taken for the answer to anything later.
    ASSERT_OK((*running)->start_tracking());
    const auto next_base = (*running)->base_stream();
    ASSERT_OK(next_base);
    EXPECT_EQ(next_base->size(), base->size());
    ASSERT_OK((*running)->pause());
    ASSERT_OK((*running)->resume());
    ASSERT_OK((*running)->save());
    ASSERT_OK((*running)->destroy());
  }
  ASSERT_OK((*guest)->destroy());
}

TEST(QemuDriver, AStandbyThatIsFedNonsenseTellsQemusOwnWords) {
  World world;
  auto guest = qemu::start(world.definition(), world.options("a"));
  ASSERT_OK(guest);
  auto standby = qemu::prepare(world.definition(), world.options("b"));
  ASSERT_OK(standby);
  const auto base = (*guest)->base_stream();
  ASSERT_OK(base);
  ASSERT_OK((*guest)->pause());
  ASSERT_OK((*guest)->resume());
  const auto state = (*guest)->save();
  ASSERT_OK(state);
  std::vector<std::byte> wrong(state->begin(), state->end());
  wrong[20] ^= std::byte{0xff};  // in the first section's name
  const auto promoted = (*standby)->restore_and_run(*base, wrong);
  ASSERT_FALSE(promoted.ok());
  EXPECT_THAT(promoted.status().message(), ::testing::HasSubstr("load of migration failed"));
  ASSERT_OK((*standby)->destroy());
  standby = qemu::prepare(world.definition(), world.options("b"));
  ASSERT_OK(standby);
  EXPECT_THAT((*standby)->load(*base, wrong).message(), ::testing::HasSubstr("load of migration failed"));
  ASSERT_OK((*standby)->destroy());
  EXPECT_TRUE(counts(**guest));
  ASSERT_OK((*guest)->destroy());
}

TEST(QemuDriver, AForgottenStandbyMakesWayButARunningGuestDoesNot) {
  World world;
  auto guest = qemu::start(world.definition(), world.options("a"));
  ASSERT_OK(guest);
  const int pid = (*guest)->pid();
  guest->reset();  // As when the daemon ends: the guest goes on.
  const auto again = qemu::start(world.definition(), world.options("a"));
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.status().code(), Code::exists);

  Definition attached = world.definition();
  attached.attach_qmp = world.path("a/vm1.qmp");
  auto taken = qemu::attach(attached, world.options("a"));
  ASSERT_OK(taken);
  EXPECT_EQ((*taken)->pid(), pid);
  EXPECT_TRUE(counts(**taken));
  ASSERT_OK((*taken)->destroy());

  // A daemon that is killed leaves its standby behind: a process of its own plays it.
  const pid_t daemon = ::fork();
  if (daemon == 0) {
    auto orphan = qemu::prepare(world.definition(), world.options("b"));
    ::_exit(orphan.ok() ? 0 : 1);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(daemon, &how, 0), daemon);
  ASSERT_EQ(how, 0);
  const auto next = qemu::prepare(world.definition(), world.options("b"));
  ASSERT_OK(next);
  const auto held = qemu::prepare(world.definition(), world.options("b"));
  ASSERT_FALSE(held.ok());
  EXPECT_EQ(held.status().code(), Code::exists) << "its monitor is held by somebody";
}

TEST(QemuDriver, AQemuThatSomebodyElseStartedIsAttachedToAndPromoted) {
  World world;
  const std::string qmp = world.path("own.sock"), log = world.path("own.log");
  const std::vector<std::string> argv{
      "qemu-system-x86_64",
      "-nodefaults",
      "-vga",
      "none",
      "-display",
      "none",
      "-machine",
      "pc,memory-backend=mem",
      "-object",
      "memory-backend-memfd,id=mem,size=64M,share=on",
      "-m",
      "64",
      "-cpu",
      "qemu64",
      "-accel",
      "tcg",
      "-kernel",
      world.kernel(),
      "-serial",
      "file:" + world.path("serial.log"),
      "-qmp",
      "unix:" + qmp + ",server=on,wait=off",
      "-netdev",
      "stream,id=n,server=on,addr.type=unix,addr.path=" + world.path("own.net"),
      "-device",
      "virtio-net-pci,netdev=n,mac=52:54:00:11:22:33,addr=5"};
  const auto process = Process::spawn(argv, {}, log);
  ASSERT_OK(process);
  ASSERT_TRUE(eventually([&] { return world.boots() == 1; })) << process->last_words();

  Definition definition;
  definition.name = "vm2";
  definition.accelerator = "tcg";
  definition.attach_qmp = qmp;
  const auto described = qemu::describe(definition, world.options("a"));
  ASSERT_OK(described);
  EXPECT_EQ(described->memory_mib, 64u);
  EXPECT_EQ(described->kernel, world.kernel());
  ASSERT_EQ(described->nics.size(), 1u);
  EXPECT_EQ(described->nics[0].mac, "52:54:00:11:22:33");

  auto attached = qemu::attach(*described, world.options("a"));
  ASSERT_OK(attached);
  Guest& primary = **attached;
  EXPECT_EQ(primary.pid(), process->pid());
  EXPECT_EQ(primary.nics().at(0).socket_path, world.path("own.net"));
  auto standby = qemu::prepare(*described, world.options("b"));
  ASSERT_OK(standby);
  EXPECT_THAT(differences(primary.facts(), (*standby)->facts()), ::testing::IsEmpty());
  ASSERT_OK(primary.start_tracking());
  const auto base = primary.base_stream();
  ASSERT_OK(base);
  PageSet dirty;
  for (int epoch = 0; epoch < 5; ++epoch) {
    ASSERT_TRUE(counts(primary));
    ASSERT_OK(primary.pause());
    ASSERT_OK(primary.collect_dirty(&dirty));
    copy(dirty, primary.memory(), (*standby)->memory());
    ASSERT_OK(primary.resume());
  }
  const auto state = primary.save();
  ASSERT_OK(state);
  const uint32_t committed = counter((*standby)->memory());
  auto promoted = (*standby)->restore_and_run(*base, *state);
  ASSERT_OK(promoted);
  EXPECT_TRUE(counts(**promoted));
  EXPECT_GE(counter((*promoted)->memory()), committed);
  ASSERT_OK(primary.destroy());
  ASSERT_OK((*promoted)->destroy());
}

}  // namespace
}  // namespace remusd::guest::qemu
