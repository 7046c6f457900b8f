// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The QEMU driver with a real QEMU. Needs root (tracking and /proc/PID/fd of another process).
#include <algorithm>

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
    const auto state = primary.save();
    ASSERT_OK(state);
    EXPECT_GT(state->size(), 1000u);
    device.assign(state->begin(), state->end());
    committed = counter(primary.memory());
    // Nothing may write the memory between stop and resume: neither the guest nor the saving.
    ASSERT_OK(primary.collect_dirty(&dirty));
    EXPECT_EQ(page_count(dirty), 0u);
    EXPECT_TRUE(std::ranges::equal(primary.memory(), standby.memory())) << "epoch " << epoch;
    ASSERT_OK(primary.resume());
    pauses.push_back(to_ms(Clock::now() - begin));
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
  ASSERT_OK(replica.save());
  ASSERT_OK(replica.resume());
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
  std::vector<double> alone, whole, stop, save, resume;
  PageSet dirty;
  const auto wait = [] { std::this_thread::sleep_for(std::chrono::milliseconds(10)); };
  for (int i = 0; i < 200; ++i) {
    const Time begin = Clock::now();
    ASSERT_OK((*guest)->pause());
    const Time stopped = Clock::now();
    ASSERT_OK((*guest)->save());
    const Time saved = Clock::now();
    ASSERT_OK((*guest)->resume());
    const Time end = Clock::now();
    alone.push_back(to_ms(end - begin));
    stop.push_back(to_ms(stopped - begin));
    save.push_back(to_ms(saved - stopped));
    resume.push_back(to_ms(end - saved));
    wait();
  }
  ASSERT_OK((*guest)->start_tracking());
  for (int i = 0; i < 200; ++i) {
    const Time begin = Clock::now();
    ASSERT_OK((*guest)->pause());
    ASSERT_OK((*guest)->collect_dirty(&dirty));
    ASSERT_OK((*guest)->save());
    ASSERT_OK((*guest)->resume());
    whole.push_back(to_ms(Clock::now() - begin));
    wait();
  }
  report("stop + save + cont", alone);
  report("  stop", stop);
  report("  save", save);
  report("  cont", resume);
  report("stop + scan + save + cont", whole);
  ASSERT_OK((*guest)->destroy());
}

}  // namespace
}  // namespace remusd::guest::qemu
