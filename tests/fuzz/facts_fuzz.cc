// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/facts.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

guest::Facts example() {
  guest::Facts facts;
  facts.driver = "qemu";
  facts.version = "7.2.22 (Debian)";
  facts.machine = "pc-i440fx-7.2";
  facts.accelerator = "tcg";
  facts.cpu_model = "qemu64-x86_64-cpu";
  facts.vcpus = 2;
  facts.memory_bytes = 256u << 20;
  facts.features = {{"cpuid[1].ecx", 0x80002001}, {"cpuid[7,0].ebx", 9}, {"cpuid[0x80000001].edx", 7}};
  facts.devices = {"/machine/unattached/device[0] qemu64-x86_64-cpu -", "/machine/q35 pc 00:00.0"};
  return facts;
}

void run(View bytes) {
  const auto facts = guest::facts_from_json(text_of(bytes));
  if (!facts.ok()) return require_reason(facts.status());
  REMUSD_ASSERT(guest::differences(*facts, *facts).empty(), "nothing differs from itself");
  static const guest::Facts ours = example();
  const auto lines = guest::differences(*facts, ours);
  REMUSD_ASSERT(lines.size() <= 101, "what is said about differences is bounded");
  REMUSD_ASSERT(lines.empty() == guest::differences(ours, *facts).empty(), "the gate has no direction");
  const auto again = guest::facts_from_json(guest::to_json(*facts));
  REMUSD_ASSERT(again.ok() && *again == *facts, "facts are read as they were written");
}

void seeds(Seeds* out) {
  guest::Facts facts = example();
  out->add_text(guest::to_json(facts));
  facts.features[0].value ^= 0x14;
  facts.features[1].name = "cpuid[7,1].eax";
  facts.devices.pop_back();
  out->add_text(guest::to_json(facts));
  out->words = {"\"driver\"", "\"version\"", "\"features\"", "\"devices\"", "\"vcpus\"", "cpuid[",
                "].eax",      "null",        "1e9",          "-1",          "\\u0000"};
}

REMUSD_FUZZ_TARGET(facts, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
