// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/definition.h"
#include "guest/definition_limits.h"
#include "guest/json_fields.h"

namespace remusd::guest {

using nlohmann::json;

std::string to_json(const Definition& definition) {
  json nics = json::array();
  for (const NicDefinition& nic : definition.nics) {
    nics.push_back({{"model", nic.model}, {"mac", nic.mac}, {"bridge", nic.bridge}, {"tap", nic.tap}});
  }
  json disks = json::array();
  for (const DiskDefinition& disk : definition.disks) {
    disks.push_back({{"name", disk.name},
                     {"path", disk.path},
                     {"backup_path", disk.backup_path},
                     {"read_only", disk.read_only},
                     {"model", disk.model},
                     {"bytes", disk.bytes}});
    if (disk.held()) disks.back()["mode"] = disk.mode;  // what an older peer knows nothing of
  }
  json out{
      {"name", definition.name},
      {"driver", definition.driver},
      {"machine", definition.machine},
      {"accelerator", definition.accelerator},
      {"cpu", definition.cpu},
      {"vcpus", definition.vcpus},
      {"memory_mib", definition.memory_mib},
      {"kernel", definition.kernel},
      {"initrd", definition.initrd},
      {"append", definition.append},
      {"serial_log", definition.serial_log},
      {"nics", std::move(nics)},
      {"extra_args", definition.extra_args},
      {"attach_qmp", definition.attach_qmp},
      {"attach_command", definition.attach_command},
      {"sim", {{"seed", definition.sim.seed}, {"dirty_pages_per_ms", definition.sim.dirty_pages_per_ms}}},
  };
  // A peer that knows nothing of disks refuses the member, as it must, and takes guests without.
  if (!disks.empty()) out["disks"] = std::move(disks);
  return dump(out);
}

Result<Definition> definition_from_json(std::string_view text) {
  constexpr Code kCode = Code::invalid;
  REMUSD_ASSIGN(const json value, parse_object(text, kMaxDefinitionBytes, "definition", kCode));
  Definition definition;
  JsonFields fields(value, "", kCode);
  fields.text("name", &definition.name, kMaxNameBytes, JsonFields::Need::required);
  fields.text("driver", &definition.driver, kMaxNameBytes);
  fields.text("machine", &definition.machine, kMaxNameBytes);
  fields.text("accelerator", &definition.accelerator, kMaxNameBytes);
  fields.text("cpu", &definition.cpu, kMaxCpuBytes);
  fields.number("vcpus", &definition.vcpus);
  fields.number("memory_mib", &definition.memory_mib);
  fields.text("kernel", &definition.kernel, kMaxPathBytes);
  fields.text("initrd", &definition.initrd, kMaxPathBytes);
  fields.text("append", &definition.append, kMaxAppendBytes);
  fields.text("serial_log", &definition.serial_log, kMaxPathBytes);
  fields.texts("extra_args", &definition.extra_args, kMaxExtraArguments, kMaxArgumentBytes);
  fields.text("attach_qmp", &definition.attach_qmp, kMaxSocketPathBytes);
  fields.texts("attach_command", &definition.attach_command, kMaxCommandArguments, kMaxArgumentBytes);
  if (const json* nics = fields.array("nics", kMaxNics)) {
    for (size_t i = 0; i < nics->size(); ++i) {
      NicDefinition nic;
      JsonFields members((*nics)[i], "nics[" + std::to_string(i) + "].", kCode);
      members.text("model", &nic.model, kMaxNameBytes);
      members.text("mac", &nic.mac, kMaxNameBytes);
      members.text("bridge", &nic.bridge, kMaxInterfaceBytes);
      members.text("tap", &nic.tap, kMaxInterfaceBytes);
      fields.note(members.finish());
      definition.nics.push_back(std::move(nic));
    }
  }
  if (const json* disks = fields.array("disks", kMaxDisks)) {
    for (size_t i = 0; i < disks->size(); ++i) {
      DiskDefinition disk;
      JsonFields members((*disks)[i], "disks[" + std::to_string(i) + "].", kCode);
      members.text("name", &disk.name, kMaxNameBytes);
      members.text("path", &disk.path, kMaxPathBytes);
      members.text("backup_path", &disk.backup_path, kMaxPathBytes);
      members.flag("read_only", &disk.read_only);
      members.text("mode", &disk.mode, kMaxNameBytes);
      members.text("model", &disk.model, kMaxNameBytes);
      members.number("bytes", &disk.bytes);
      fields.note(members.finish());
      definition.disks.push_back(std::move(disk));
    }
  }
  if (const json* sim = fields.object("sim")) {
    JsonFields members(*sim, "sim.", kCode);
    members.number("seed", &definition.sim.seed);
    members.number("dirty_pages_per_ms", &definition.sim.dirty_pages_per_ms);
    fields.note(members.finish());
  }
  if (Status status = fields.finish(); !status.ok()) return status.with_context("definition");
  return definition;
}

}  // namespace remusd::guest
