// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The gate: what must be equal on both sides before the first page. QEMU checks almost nothing when it
// loads a state, so this comparison is what keeps a state from being loaded into another machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/status.h"

namespace remusd::guest {

/// One CPUID-like word of the running vCPU, e.g. {"cpuid[1].ecx", 0x…}; QEMU: qom-get feature-words.
struct FeatureWord {
  std::string name;
  uint32_t value = 0;
  bool operator==(const FeatureWord&) const = default;
};

struct Facts {
  std::string driver;       // "qemu", "sim"
  std::string version;      // hypervisor version with the distribution's package suffix
  std::string machine;      // resolved machine type, e.g. "pc-i440fx-7.2", never an alias
  std::string accelerator;  // "tcg", "kvm", "sim"
  std::string cpu_model;    // type name of the running vCPU
  uint32_t vcpus = 0;
  uint64_t memory_bytes = 0;
  std::vector<FeatureWord> features;
  std::vector<std::string> devices;  // "<qom path> <type> <pci address>" in a canonical order

  bool operator==(const Facts&) const = default;
};

/// One line for each difference, naming the fact and both values; feature bits by name where known
/// ("cpu feature avx2: primary has it, backup does not"). Empty when the two may replace each other.
std::vector<std::string> differences(const Facts& primary, const Facts& backup);

/// Compact JSON, for the FACTS record and for status.
std::string to_json(const Facts& facts);
/// Refuses missing, unknown-typed or oversized fields with `corrupt`.
Result<Facts> facts_from_json(std::string_view text);

}  // namespace remusd::guest
