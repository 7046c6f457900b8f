// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/guest_file.h"

#include "control/toml_reader.h"

namespace remusd::control {
namespace {

constexpr size_t kMaxNics = 8, kMaxDisks = 16;

/// An array of at most `most` tables, [[key]], each of which is read into a new element of *out.
template <typename Element>
TomlField tables_field(const std::string& key, size_t most, std::vector<Element>* out,
                       std::function<std::vector<TomlField>(Element*)> fields_of) {
  return {key, "an array of tables, [[" + key + "]]", [=](const toml::node& node) -> Status {
            const toml::array* array = node.as_array();
            if (array == nullptr) return {Code::invalid, ""};
            for (const toml::node& element : *array) {
              const toml::table* table = element.as_table();
              if (table == nullptr) return {Code::invalid, ""};
              Element read;
              REMUSD_TRY(read_fields(*table, key + ".", fields_of(&read)));
              if (out->size() == most) {
                return {Code::invalid,
                        where(element) + ": more than " + std::to_string(most) + " [[" + key + "]] tables"};
              }
              out->push_back(std::move(read));
            }
            return {};
          }};
}

std::vector<TomlField> nic_fields(guest::NicDefinition* nic) {
  return {choice_field("model", {guest::kNicModels.begin(), guest::kNicModels.end()}, &nic->model),
          text_field("mac", &nic->mac), text_field("bridge", &nic->bridge), text_field("tap", &nic->tap)};
}

std::vector<TomlField> disk_fields(guest::DiskDefinition* disk) {
  return {text_field("name", &disk->name),
          text_field("path", &disk->path),
          text_field("backup_path", &disk->backup_path),
          bool_field("read_only", &disk->read_only),
          choice_field("mode", {"replicate", "hold"}, &disk->mode),
          choice_field("model", {guest::kDiskModels.begin(), guest::kDiskModels.end()}, &disk->model)};
}

// Validation knows fields, not lines: the line of the first key that its message names.
std::string blame(const toml::table& root, const std::string& path, const std::string& message) {
  for (const auto& [key, node] : root) {
    if (message.find(key.str()) != std::string::npos) return where(node);
  }
  return path + ":1";
}

}  // namespace

Result<guest::Definition> load_guest_file(const std::string& path) {
  REMUSD_ASSIGN(const toml::table root, parse_toml(path));
  guest::Definition definition;
  const auto attach = [&](const toml::table& table) {
    return read_fields(table, "attach.", {text_field("qmp", &definition.attach_qmp)});
  };
  const auto sim = [&](const toml::table& table) {
    return read_fields(table, "sim.",
                       {integer_field("seed", 0, INT64_MAX, &definition.sim.seed),
                        integer_field("dirty_pages_per_ms", 0, 100000, &definition.sim.dirty_pages_per_ms)});
  };
  REMUSD_TRY(
      read_fields(root, "",
                  {checked_text_field("name", kNameRule, is_name, &definition.name),
                   choice_field("driver", {"qemu", "sim"}, &definition.driver),
                   text_field("machine", &definition.machine),
                   choice_field("accelerator", {"kvm", "tcg"}, &definition.accelerator),
                   text_field("cpu", &definition.cpu), integer_field("vcpus", 1, 255, &definition.vcpus),
                   integer_field("memory_mib", 1, 16777216, &definition.memory_mib),
                   text_field("kernel", &definition.kernel), text_field("initrd", &definition.initrd),
                   text_field("append", &definition.append), text_field("serial_log", &definition.serial_log),
                   text_list_field("extra_args", &definition.extra_args),
                   tables_field<guest::NicDefinition>("nic", kMaxNics, &definition.nics, nic_fields),
                   tables_field<guest::DiskDefinition>("disk", kMaxDisks, &definition.disks, disk_fields),
                   table_field("attach", attach), table_field("sim", sim)}));
  if (definition.name.empty()) {
    return Status(Code::invalid, path + ":1: 'name' is missing; it must be " + std::string(kNameRule));
  }
  if (Status valid = guest::complete_and_validate(&definition); !valid.ok()) {
    return valid.with_context(blame(root, path, valid.message()));
  }
  return definition;
}

}  // namespace remusd::control
