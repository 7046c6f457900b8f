// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest's definition as a peer sends it, its validation, and the QEMU arguments in it.
#include "guest/arguments.h"
#include "guest/definition.h"
#include "guest/definition_limits.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

void run(View bytes) {
  auto definition = guest::definition_from_json(text_of(bytes));
  if (!definition.ok()) return require_reason(definition.status());
  const auto again = guest::definition_from_json(guest::to_json(*definition));
  REMUSD_ASSERT(again.ok() && *again == *definition, "a definition is read as it was written");
  for (const auto origin : {guest::ArgumentsOf::extra, guest::ArgumentsOf::attached}) {
    const Status status = guest::check_arguments(definition->extra_args, origin, "extra_args");
    if (!status.ok()) require_reason(status);
  }
  if (const Status status = guest::complete_and_validate(&*definition); !status.ok())
    return require_reason(status);
  REMUSD_ASSERT(!definition->name.empty() && definition->name.size() <= guest::kMaxNameBytes &&
                    definition->name.find('/') == std::string::npos,
                "a guest's name can be a file's");
  REMUSD_ASSERT(definition->memory_mib > 0 && definition->memory_mib <= guest::kMaxMemoryMib &&
                    definition->vcpus > 0 && definition->nics.size() <= guest::kMaxNics &&
                    definition->disks.size() <= guest::kMaxDisks,
                "bounds hold");
  for (const auto& nic : definition->nics) {
    REMUSD_ASSERT(nic.mac.size() == 17 && nic.tap.size() <= guest::kMaxInterfaceBytes, "each card is whole");
  }
  guest::Definition twice = *definition;
  REMUSD_ASSERT(guest::complete_and_validate(&twice).ok() && twice == *definition,
                "what was completed is complete");
}

void seeds(Seeds* out) {
  guest::Definition definition;
  definition.name = "web-1";
  definition.driver = "sim";
  definition.nics.resize(2);
  out->add_text(guest::to_json(definition));
  definition.driver = "qemu";
  definition.accelerator = "tcg";
  definition.kernel = "/boot/vmlinuz";
  definition.append = "console=ttyS0";
  definition.extra_args = {"-device", "virtio-rng-pci,id=r",
                           "-global", "kvm-pit.lost_tick_policy=discard",
                           "-device", R"({"driver":"virtio-balloon-pci"})"};
  out->add_text(guest::to_json(definition));
  definition.nics[0] = {"e1000", "52:54:00:12:34:56", "br0", "tap7"};
  definition.disks = {{"", "/a/disk", ""}, {"data", "/a/data", "/b/data", true}};
  out->add_text(guest::to_json(definition));
  definition.disks.clear();
  definition.attach_qmp = "/run/q.sock";
  definition.attach_command = {"qemu-system-x86_64", "-machine", "pc", "-m", "64"};
  out->add_text(guest::to_json(definition));
  out->words = {"\"name\"",  "\"nics\"",    "\"mac\"", "\"tap\"",        "\"extra_args\"", "\"attach_qmp\"",
                "\"sim\"",   "-device",     "-netdev", "-drive",         "\"disks\"",      "\"read_only\"",
                "-incoming", "vhost-user-", "file=",   "\"memory_mib\"", "65536"};
}

REMUSD_FUZZ_TARGET(definition, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
