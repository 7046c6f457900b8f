// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The simulated machine under virtual time. Its thread and sockets: guest_sim_guest_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "guest/sim/machine.h"

namespace remusd::guest::sim {
namespace {

using ::testing::HasSubstr;

constexpr MacBytes kClient{0x52, 0x54, 0, 0, 0, 1};
constexpr MacBytes kCard{0x52, 0x54, 0, 9, 9, 9};

SimConfig config_with(uint64_t seed) {
  return {.seed = seed, .dirty_pages_per_ms = 4, .memory_pages = 512, .cards = {kCard}};
}

SimMachine boot(const SimConfig& config) {
  auto machine = SimMachine::boot(config);
  EXPECT_TRUE(machine.ok()) << machine.status().message();
  return *std::move(machine);
}

SimMemory new_memory(const SimConfig& config) {
  auto memory = SimMemory::create(config.memory_bytes());
  EXPECT_TRUE(memory.ok()) << memory.status().message();
  return *std::move(memory);
}

FrameBytes request(uint64_t id, const MacBytes& to = kCard) {
  return to_frame({.to = to, .from = kClient, .id = id});
}

std::vector<SimFrame> take(SimMachine* machine) {
  std::vector<SimFrame> frames;
  while (!machine->output().empty()) {
    frames.push_back(machine->output().front());
    machine->pop_output();
  }
  return frames;
}

std::vector<std::byte> saved(const SimMachine& machine) {
  std::vector<std::byte> device;
  machine.save(&device);
  return device;
}

void copy_pages(const PageSet& pages, std::span<const std::byte> from, std::span<std::byte> to) {
  for (const PageRange& range : pages) {
    const size_t at = range.first * kPageSize, bytes = range.count * kPageSize;
    std::copy_n(from.begin() + static_cast<ptrdiff_t>(at), bytes, to.begin() + static_cast<ptrdiff_t>(at));
  }
}

/// Ticks, requests and the taking of output, in an order that `random` decides.
void live(SimMachine* machine, std::mt19937_64* random, int actions, std::vector<SimFrame>* output) {
  for (int i = 0; i < actions; ++i) {
    const uint64_t choice = (*random)();
    if (choice % 3 == 0) {
      machine->step(1 + choice % 5);
    } else if (choice % 3 == 1) {
      static_cast<void>(machine->receive(0, request(1 + choice % 1000)));
    } else {
      for (const SimFrame& frame : take(machine)) output->push_back(frame);
    }
  }
}

TEST(SimMachine, SameSeedAndInputDoTheSame) {
  SimMachine first = boot(config_with(7)), second = boot(config_with(7));
  std::mt19937_64 random1(1), random2(1);
  std::vector<SimFrame> output1, output2;
  live(&first, &random1, 300, &output1);
  live(&second, &random2, 300, &output2);
  EXPECT_EQ(memory_digest(first.memory()), memory_digest(second.memory()));
  EXPECT_EQ(first.device(), second.device());
  EXPECT_EQ(output1, output2);
  EXPECT_GT(output1.size(), 20u);
}

TEST(SimMachine, AnotherSeedDoesSomethingElse) {
  SimMachine first = boot(config_with(7)), second = boot(config_with(8));
  first.step(5);
  second.step(5);
  EXPECT_NE(memory_digest(first.memory()), memory_digest(second.memory()));
}

TEST(SimMachine, KeepsTheDigestOfItsMemory) {
  SimMachine machine = boot(config_with(3));
  std::mt19937_64 random(3);
  std::vector<SimFrame> output;
  for (int i = 0; i < 50; ++i) {
    live(&machine, &random, 10, &output);
    ASSERT_EQ(machine.device().memory_sum, memory_digest(machine.memory()));
  }
}

TEST(SimMachine, DirtyPagesAreExactlyThoseThatChanged) {
  SimMachine machine = boot(config_with(4));
  PageSet dirty;
  machine.collect_dirty(&dirty);
  for (int epoch = 0; epoch < 20; ++epoch) {
    const std::vector<std::byte> before(machine.memory().begin(), machine.memory().end());
    machine.step(3);
    machine.collect_dirty(&dirty);
    std::vector<bool> reported(machine.config().memory_pages);
    uint64_t next = 0;
    for (const PageRange& range : dirty) {
      ASSERT_GT(range.count, 0u);
      ASSERT_TRUE(range.first >= next) << "ascending, not overlapping";
      next = range.first + range.count;
      ASSERT_LE(next, machine.config().memory_pages);
      for (uint64_t page = range.first; page < next; ++page) reported[page] = true;
    }
    for (uint64_t page = 0; page < reported.size(); ++page) {
      const auto at = static_cast<ptrdiff_t>(page * kPageSize);
      const bool changed =
          !std::equal(before.begin() + at, before.begin() + at + kPageSize, machine.memory().begin() + at);
      ASSERT_EQ(changed, reported[page]) << "page " << page;
    }
  }
  machine.collect_dirty(&dirty);
  EXPECT_TRUE(dirty.empty());
}

class SimCheckpoint : public ::testing::TestWithParam<uint64_t> {};

// Faults 4 and 5 of the list cannot be told from the outside when the continuation is not exact.
TEST_P(SimCheckpoint, ContinuesBitExactlyOnTheStandby) {
  const SimConfig config = config_with(GetParam());
  SimMachine primary = boot(config);
  SimMemory image = new_memory(config);
  std::mt19937_64 random(GetParam());
  std::vector<SimFrame> output;
  PageSet dirty;
  primary.mark_populated_dirty();
  for (int epoch = 0; epoch < 20; ++epoch) {
    live(&primary, &random, static_cast<int>(random() % 40), &output);
    primary.collect_dirty(&dirty);
    copy_pages(dirty, primary.memory(), image.outside());
  }
  auto restored = SimMachine::restore(config, std::move(image), primary.base(), saved(primary));
  ASSERT_TRUE(restored.ok()) << restored.status().message();
  SimMachine& backup = *restored;
  EXPECT_EQ(primary.device(), backup.device());

  std::mt19937_64 same = random;
  std::vector<SimFrame> output1, output2;
  live(&primary, &random, 500, &output1);
  live(&backup, &same, 500, &output2);
  EXPECT_EQ(output1, output2);
  EXPECT_FALSE(output1.empty());
  EXPECT_EQ(primary.device(), backup.device());
  EXPECT_TRUE(std::ranges::equal(primary.memory(), backup.memory()));

  // What is populated is known again: a third machine can be synchronized from the second.
  SimMemory third = new_memory(config);
  backup.mark_populated_dirty();
  backup.collect_dirty(&dirty);
  copy_pages(dirty, backup.memory(), third.outside());
  EXPECT_TRUE(SimMachine::restore(config, std::move(third), backup.base(), saved(backup)).ok());
}
INSTANTIATE_TEST_SUITE_P(Seeds, SimCheckpoint, ::testing::Range<uint64_t>(1, 17));

Status restore_spoiled(const std::function<void(std::span<std::byte>)>& spoil) {
  SimMachine primary = boot(config_with(5));
  primary.step(10);
  SimMemory image = new_memory(primary.config());
  std::ranges::copy(primary.memory(), image.outside().begin());
  spoil(image.outside());
  return SimMachine::restore(primary.config(), std::move(image), primary.base(), saved(primary)).status();
}

TEST(SimRestore, RefusesAnImageThatIsNotOfTheEpoch) {
  EXPECT_TRUE(restore_spoiled([](auto) {}).ok());
  const auto bit_flipped = restore_spoiled([](auto image) { image[77 * kPageSize + 5] ^= std::byte{1}; });
  EXPECT_EQ(bit_flipped.code(), Code::corrupt);
  const auto page_lost = restore_spoiled(
      [](auto image) { std::ranges::fill(image.subspan(kPageSize, kPageSize), std::byte{}); });
  EXPECT_EQ(page_lost.code(), Code::corrupt);
  const auto wild_page = restore_spoiled([](auto image) { image[image.size() - 1] ^= std::byte{1}; });
  EXPECT_EQ(wild_page.code(), Code::corrupt);
  const auto swapped = restore_spoiled([](auto image) {
    std::swap_ranges(image.begin() + kPageSize, image.begin() + 2 * kPageSize, image.begin() + 2 * kPageSize);
  });
  EXPECT_EQ(swapped.code(), Code::corrupt);
}

TEST(SimRestore, RefusesAMixtureOfTwoEpochs) {
  SimMachine primary = boot(config_with(6));
  primary.step(10);
  SimMemory image = new_memory(primary.config());
  std::ranges::copy(primary.memory(), image.outside().begin());
  primary.step(1);
  const auto mixed = SimMachine::restore(primary.config(), std::move(image), primary.base(), saved(primary));
  EXPECT_EQ(mixed.status().code(), Code::corrupt);
  EXPECT_THAT(mixed.status().message(), HasSubstr("memory at step 10, device at step 11"));
}

TEST(SimRestore, RefusesALostOrForeignBase) {
  SimMachine primary = boot(config_with(6));
  const auto with_base = [&](std::span<const std::byte> base) {
    SimMemory image = new_memory(primary.config());
    std::ranges::copy(primary.memory(), image.outside().begin());
    return SimMachine::restore(primary.config(), std::move(image), base, saved(primary)).status().code();
  };
  EXPECT_EQ(with_base(primary.base()), Code::ok);
  EXPECT_EQ(with_base({}), Code::corrupt);
  EXPECT_EQ(with_base(std::span<const std::byte>(primary.base()).first(100)), Code::corrupt);
  EXPECT_EQ(with_base(boot(config_with(7)).base()), Code::corrupt);
}

TEST(SimDevice, EveryFlippedByteAndEveryOtherLengthIsRefused) {
  SimMachine machine = boot(config_with(9));
  machine.step(20);
  std::vector<std::byte> device = saved(machine);
  const uint64_t config = machine.config().digest();
  ASSERT_TRUE(load_device(device, config, 1).ok());
  EXPECT_EQ(*load_device(device, config, 1), machine.device());
  for (std::byte& byte : device) {
    byte ^= std::byte{0x10};
    EXPECT_EQ(load_device(device, config, 1).status().code(), Code::corrupt);
    byte ^= std::byte{0x10};
  }
  EXPECT_EQ(load_device(std::span(device).first(device.size() - 1), config, 1).status().code(),
            Code::corrupt);
  EXPECT_EQ(load_device({}, config, 1).status().code(), Code::corrupt);
  EXPECT_EQ(load_device(device, config + 1, 1).status().code(), Code::corrupt) << "of another definition";
  EXPECT_EQ(load_device(device, config, 0).status().code(), Code::corrupt)
      << "a frame for a card that is not";
}

TEST(SimMachine, AnswersWithACounterThatNeverRepeats) {
  SimMachine machine = boot(config_with(1));
  uint64_t seen = 0;
  for (uint64_t id = 1; id <= 200; ++id) {
    ASSERT_TRUE(machine.receive(0, request(id)));
    for (const SimFrame& frame : take(&machine)) {
      const auto reply = parse_frame(frame.bytes);
      ASSERT_TRUE(reply);
      EXPECT_EQ(reply->counter, seen + 1);
      seen = reply->counter;
      EXPECT_TRUE(reply->id == id || (reply->id == 0 && reply->to == kBroadcast));
      EXPECT_EQ(reply->from, kCard);
    }
    machine.step(1);
  }
  EXPECT_EQ(machine.counter(), seen + machine.output().size());
  EXPECT_GE(seen, 200 + 200 / kBeaconMs - 1) << "beacons are sent, too";
}

TEST(SimMachine, IgnoresFramesThatAreNotForIt) {
  SimMachine machine = boot(config_with(1));
  FrameBytes other_type = request(5);
  other_type[12] = std::byte{8};
  const std::vector<std::vector<std::byte>> ignored{
      {},
      std::vector<std::byte>(21),
      {other_type.begin(), other_type.end()},
  };
  for (const auto& frame : ignored) EXPECT_TRUE(machine.receive(0, frame));
  EXPECT_TRUE(machine.receive(0, request(0))) << "a beacon of another guest";
  EXPECT_TRUE(machine.receive(0, request(5, kClient))) << "for another MAC";
  EXPECT_TRUE(machine.output().empty());
  EXPECT_TRUE(machine.receive(0, request(5, kBroadcast)));
  EXPECT_EQ(machine.output().size(), 1u);
}

TEST(SimMachine, FullTransmitRingHoldsInputBackAndIsPartOfTheState) {
  SimMachine machine = boot(config_with(2));
  uint64_t id = 1;
  while (machine.receive(0, request(id))) ++id;
  EXPECT_EQ(id - 1, kTransmitSlots);
  const uint64_t counter = machine.counter();
  machine.step(5 * kBeaconMs);
  EXPECT_FALSE(machine.receive(0, request(id)));
  EXPECT_EQ(machine.counter(), counter) << "nothing was answered or sent in vain";

  SimMemory image = new_memory(machine.config());
  std::ranges::copy(machine.memory(), image.outside().begin());
  auto restored = SimMachine::restore(machine.config(), std::move(image), machine.base(), saved(machine));
  ASSERT_TRUE(restored.ok()) << restored.status().message();
  EXPECT_EQ(take(&*restored), take(&machine));
  EXPECT_TRUE(machine.receive(0, request(id)));
}

TEST(SimMachine, HaltedMachineDoesNothingAndStaysHalted) {
  SimMachine machine = boot(config_with(2));
  machine.halt();
  const uint64_t digest = memory_digest(machine.memory());
  machine.step(100);
  EXPECT_TRUE(machine.receive(0, request(1)));
  EXPECT_EQ(memory_digest(machine.memory()), digest);
  EXPECT_TRUE(machine.output().empty());
  const auto device = load_device(saved(machine), machine.config().digest(), 1);
  ASSERT_TRUE(device.ok());
  EXPECT_TRUE(device->halted);
}

TEST(SimMachine, MachineWithoutCardsAndWithoutWorkRuns) {
  SimMachine machine = boot({.seed = 1, .dirty_pages_per_ms = 0, .memory_pages = kMinPages, .cards = {}});
  machine.step(100);
  EXPECT_EQ(machine.device().steps, 100u);
  EXPECT_EQ(machine.device().memory_sum, memory_digest(machine.memory()));
  EXPECT_TRUE(load_device(saved(machine), machine.config().digest(), 0).ok());
}

}  // namespace
}  // namespace remusd::guest::sim
