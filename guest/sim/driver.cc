// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/sim/driver.h"

#include <unistd.h>

#include <atomic>
#include <optional>
#include <string>

#include "guest/sim/machine.h"
#include "guest/sim/sim_guest.h"

namespace remusd::guest::sim {
namespace {

Facts facts_of(const Definition& definition) {
  Facts facts;
  facts.driver = "sim";
  facts.version = "sim 1";
  facts.machine = "sim-1.0";
  facts.accelerator = "sim";
  facts.cpu_model = definition.cpu.empty() ? "sim64" : definition.cpu;
  facts.vcpus = definition.vcpus;
  facts.memory_bytes = definition.memory_mib << 20;
  const uint64_t config = config_of(definition).digest();
  facts.features = {{"sim.config_low", static_cast<uint32_t>(config)},
                    {"sim.config_high", static_cast<uint32_t>(config >> 32)}};
  for (size_t i = 0; i < definition.nics.size(); ++i) {
    facts.devices.push_back("/sim/net" + std::to_string(i) + " " + definition.nics[i].model + " " +
                            definition.nics[i].mac);
  }
  return facts;
}

struct Cards {
  std::vector<NicEndpoint> endpoints;
  std::vector<std::unique_ptr<Card>> cards;
};

Result<Cards> make_cards(const Definition& definition, const DriverOptions& options) {
  // A path of its own for each machine: a standby may wait beside the guest that it replaces.
  static std::atomic<uint64_t> machines = 0;
  const std::string stem = options.runtime_dir + "/" + definition.name + "-" + std::to_string(::getpid()) +
                           "-" + std::to_string(++machines) + ".net";
  Cards made;
  for (size_t i = 0; i < definition.nics.size(); ++i) {
    const NicDefinition& nic = definition.nics[i];
    if (!options.runtime_dir.starts_with('/')) {
      return Status(Code::invalid, "runtime_dir: '" + options.runtime_dir + "' is not an absolute path");
    }
    const std::string path = stem + std::to_string(i);
    REMUSD_ASSIGN(auto card, Card::listen(path));
    made.cards.push_back(std::move(card));
    made.endpoints.push_back({"net" + std::to_string(i), nic.mac, path, nic.bridge, nic.tap});
  }
  return made;
}

class SimStandby : public Standby {
 public:
  SimStandby(Facts facts, SimConfig config, SimMemory memory, Cards cards)
      : facts_(std::move(facts)),
        config_(std::move(config)),
        memory_(std::move(memory)),
        image_(memory_->outside()),
        cards_(std::move(cards)) {}

  const Facts& facts() const override { return facts_; }
  const std::vector<NicEndpoint>& nics() const override { return cards_.endpoints; }
  std::span<std::byte> memory() override { return image_; }
  int pid() const override { return 0; }

  Status load(std::span<const std::byte> base, std::span<const std::byte> device) override {
    if (!memory_ || destroyed_)
      return Status(Code::unavailable, "simulated standby: it is loaded, spent or destroyed");
    SimMemory memory = *std::move(memory_);
    memory_.reset();
    auto machine = SimMachine::restore(config_, std::move(memory), base, device);
    if (!machine.ok()) {
      image_ = {};
      cards_.cards.clear();
      return machine.status();
    }
    machine_ = *std::move(machine);  // which moves only when it is told to
    return {};
  }

  Result<std::unique_ptr<Guest>> run() override {
    if (!machine_ || destroyed_)
      return Status(Code::unavailable, "simulated standby: it is not loaded, or has been destroyed");
    image_ = {};
    SimMachine machine = *std::move(machine_);
    machine_.reset();
    return std::unique_ptr<Guest>(
        std::make_unique<SimGuest>(facts_, cards_.endpoints, std::move(machine), std::move(cards_.cards)));
  }

  Status destroy() override {
    destroyed_ = true;
    image_ = {};
    cards_.cards.clear();
    return {};
  }

  Residue take_memory() override {
    REMUSD_ASSERT(destroyed_, "only what nobody uses any more is taken");
    Residue left;
    if (memory_) left = (*std::move(memory_)).leave();
    if (machine_) left = machine_->leave_memory();
    memory_.reset();
    machine_.reset();
    return left;
  }

 private:
  Facts facts_;
  SimConfig config_;
  std::optional<SimMemory> memory_;    // until it is loaded
  std::optional<SimMachine> machine_;  // from then on
  std::span<std::byte> image_;
  Cards cards_;
  bool destroyed_ = false;
};

}  // namespace

Result<std::unique_ptr<Guest>> start(const Definition& definition, const DriverOptions& options) {
  REMUSD_ASSIGN(Cards cards, make_cards(definition, options));
  REMUSD_ASSIGN(SimMachine machine, SimMachine::boot(config_of(definition)));
  return std::unique_ptr<Guest>(std::make_unique<SimGuest>(facts_of(definition), std::move(cards.endpoints),
                                                           std::move(machine), std::move(cards.cards)));
}

Result<std::unique_ptr<Guest>> attach(const Definition& definition, const DriverOptions&) {
  return Status(Code::unsupported,
                "guest " + definition.name +
                    ": driver sim cannot attach to a running guest; use start, or driver qemu");
}

Result<std::unique_ptr<Standby>> prepare(const Definition& definition, const DriverOptions& options) {
  REMUSD_ASSIGN(Cards cards, make_cards(definition, options));
  SimConfig config = config_of(definition);
  REMUSD_ASSIGN(SimMemory memory, SimMemory::create(config.memory_bytes()));
  return std::unique_ptr<Standby>(std::make_unique<SimStandby>(facts_of(definition), std::move(config),
                                                               std::move(memory), std::move(cards)));
}

}  // namespace remusd::guest::sim
