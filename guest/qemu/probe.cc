// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/probe.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <sstream>

namespace remusd::guest::qemu {
namespace {

using nlohmann::json;

constexpr size_t kMaxTextBytes = 256;

Status nonsense(const char* command) {
  return {Code::corrupt,
          std::string("QMP ") + command + ": the answer is not of the form that QEMU documents"};
}

/// Bounded, for it becomes a fact.
std::string text_of(const json& object, const char* key) {
  return text_member(object, key).substr(0, kMaxTextBytes);
}

uint64_t number_of(const json& object, const char* key, uint64_t missing = 0) {
  if (!object.is_object()) return missing;
  const auto member = object.find(key);
  return member != object.end() && member->is_number_unsigned() ? member->get<uint64_t>() : missing;
}

Result<json> property(Qmp* qmp, const std::string& path, const char* name) {
  return qmp->call("qom-get", {{"path", path}, {"property", name}});
}

/// A property that some objects lack: null then.
Result<json> optional_property(Qmp* qmp, const std::string& path, const char* name) {
  auto value = property(qmp, path, name);
  if (!value.ok() && value.status().code() == Code::io) return json();
  return value;
}

/// {name, type} of the children of an object, the type without "child<>". Sorted by name.
Result<std::map<std::string, std::string>> children(Qmp* qmp, const std::string& path) {
  REMUSD_ASSIGN(const json list, qmp->call("qom-list", {{"path", path}}));
  if (!list.is_array()) return nonsense("qom-list");
  std::map<std::string, std::string> out;
  for (const json& entry : list) {
    const std::string type = text_of(entry, "type");
    constexpr std::string_view kChild = "child<";
    if (!type.starts_with(kChild)) continue;
    out[text_of(entry, "name")] = type.substr(kChild.size(), type.size() - kChild.size() - 1);
  }
  return out;
}

Result<std::string> version(Qmp* qmp) {
  REMUSD_ASSIGN(const json answer, qmp->call("query-version"));
  const json numbers = answer.is_object() ? answer.value("qemu", json()) : json();
  if (!numbers.is_object()) return nonsense("query-version");
  std::string out = std::to_string(number_of(numbers, "major")) + "." +
                    std::to_string(number_of(numbers, "minor")) + "." +
                    std::to_string(number_of(numbers, "micro"));
  const std::string package = text_of(answer, "package");
  return package.empty() ? out : out + " (" + package + ")";
}

Status features(Qmp* qmp, Facts* facts) {
  REMUSD_ASSIGN(const json cpus, qmp->call("query-cpus-fast"));
  if (!cpus.is_array() || cpus.empty()) return nonsense("query-cpus-fast");
  facts->vcpus = static_cast<uint32_t>(cpus.size());
  const std::string path = text_of(cpus[0], "qom-path");
  REMUSD_ASSIGN(const json type, property(qmp, path, "type"));
  if (!type.is_string()) return nonsense("qom-get type");
  facts->cpu_model = type.get<std::string>();
  REMUSD_ASSIGN(const json words, property(qmp, path, "feature-words"));
  if (!words.is_array()) return nonsense("qom-get feature-words");
  for (const json& word : words) {
    const uint64_t leaf = number_of(word, "cpuid-input-eax");
    std::array<char, 32> leaf_text{};
    std::snprintf(leaf_text.data(), leaf_text.size(), leaf >= 0x40000000 ? "0x%llx" : "%llu",
                  static_cast<unsigned long long>(leaf));
    std::string name = std::string("cpuid[") + leaf_text.data();
    if (word.contains("cpuid-input-ecx")) name += "," + std::to_string(number_of(word, "cpuid-input-ecx"));
    std::string reg = text_of(word, "cpuid-register");
    for (char& c : reg) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    facts->features.push_back({name + "]." + reg, static_cast<uint32_t>(number_of(word, "features"))});
  }
  std::sort(facts->features.begin(), facts->features.end(),
            [](const FeatureWord& a, const FeatureWord& b) { return a.name < b.name; });
  return {};
}

/// "pci.0:03.0", by the bus's own name: the numbers of buses are the guest's to choose.
Result<std::string> pci_address(Qmp* qmp, const std::string& path) {
  REMUSD_ASSIGN(const json slot, optional_property(qmp, path, "addr"));
  if (!slot.is_number_unsigned() || slot.get<uint64_t>() > 255) return std::string("-");
  REMUSD_ASSIGN(const json bus, optional_property(qmp, path, "parent_bus"));
  std::string bus_name = bus.is_string() ? bus.get<std::string>() : "?";
  bus_name.erase(0, bus_name.rfind('/') + 1);
  const auto devfn = slot.get<unsigned>();
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), ":%02x.%x", devfn >> 3, devfn & 7);
  return bus_name + text.data();
}

Status devices(Qmp* qmp, Facts* facts) {
  for (const char* parent : {"/machine/peripheral", "/machine/peripheral-anon"}) {
    REMUSD_ASSIGN(const auto found, children(qmp, parent));
    for (const auto& [name, type] : found) {
      const std::string path = std::string(parent) + "/" + name;
      REMUSD_ASSIGN(const std::string address, pci_address(qmp, path));
      facts->devices.push_back(path + " " + type + " " + address);
    }
  }
  // What the machine type itself brings: by type and number, for its names are mere counters. vCPUs are
  // compared as such.
  REMUSD_ASSIGN(const auto built_in, children(qmp, "/machine/unattached"));
  std::map<std::string, unsigned> counts;
  for (const auto& [name, type] : built_in) {
    const bool device = name.starts_with("device[") && !type.ends_with("-cpu");
    if (device) ++counts[type];
  }
  for (const auto& [type, count] : counts) {
    facts->devices.push_back("/machine/unattached " + type + " x" + std::to_string(count));
  }
  return {};
}

/// Blocks that only firmware and QEMU fill, and that the base stream carries.
bool is_rom(const std::string& block) {
  return block == "pc.bios" || block == "pc.rom" || block.starts_with("/rom@") || block.ends_with(".rom");
}

Status memory(Qmp* qmp, Probe* out) {
  REMUSD_ASSIGN(const json backends, qmp->call("query-memdev"));
  if (!backends.is_array()) return nonsense("query-memdev");
  constexpr const char* kAdvice =
      "; start QEMU with -object memory-backend-memfd,id=ram0,size=SIZE,share=on -machine "
      "...,memory-backend=ram0";
  if (backends.size() != 1) {
    return {Code::unsafe, "the guest's RAM is in " + std::to_string(backends.size()) +
                              " memory backends, not one" + kAdvice};
  }
  if (!backends[0].is_object() || backends[0].value("share", json()) != true) {
    return {Code::unsafe, "the guest's RAM is not shared" + std::string(kAdvice)};
  }
  const std::string id = text_of(backends[0], "id");
  out->facts.memory_bytes = number_of(backends[0], "size");
  REMUSD_ASSIGN(const json path, optional_property(qmp, "/objects/" + id, "mem-path"));
  if (path.is_string()) out->mem_path = path.get<std::string>();

  // Lines of: name, page size and unit, offset, used bytes, total bytes.
  REMUSD_ASSIGN(const json listing, qmp->call("human-monitor-command", {{"command-line", "info ramblock"}}));
  if (!listing.is_string()) return nonsense("info ramblock");
  std::istringstream lines(listing.get<std::string>());
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string name, page, unit, offset;
    uint64_t used = 0;
    if (!(fields >> name >> page >> unit >> offset >> std::hex >> used)) continue;
    if (out->ram_block.empty() && used == out->facts.memory_bytes && !is_rom(name)) {
      out->ram_block = name;
    } else if (!is_rom(name)) {
      return {Code::unsafe,
              "memory block '" + name +
                  "' belongs to a device and is not covered; start QEMU without that device (for "
                  "a display: -vga none)"};
    }
  }
  if (out->ram_block.empty()) return nonsense("info ramblock");
  return {};
}

Status needed_commands(Qmp* qmp) {
  REMUSD_ASSIGN(const json commands, qmp->call("query-commands"));
  if (!commands.is_array()) return nonsense("query-commands");
  for (const char* needed : {"xen-save-devices-state", "migrate-incoming", "add-fd", "getfd"}) {
    const bool there = std::any_of(commands.begin(), commands.end(),
                                   [needed](const json& entry) { return text_of(entry, "name") == needed; });
    if (!there) {
      return {Code::unsupported, std::string("this QEMU lacks the QMP command ") + needed +
                                     "; use one that has it, such as Debian's qemu-system-x86"};
    }
  }
  return {};
}

}  // namespace

Result<Probe> probe(Qmp* qmp) {
  Probe out;
  REMUSD_TRY(needed_commands(qmp));
  out.facts.driver = "qemu";
  REMUSD_ASSIGN(out.facts.version, version(qmp));
  REMUSD_ASSIGN(const json machine, property(qmp, "/machine", "type"));
  if (!machine.is_string()) return nonsense("qom-get type");
  out.facts.machine = machine.get<std::string>();
  constexpr std::string_view kSuffix = "-machine";
  if (out.facts.machine.ends_with(kSuffix))
    out.facts.machine.resize(out.facts.machine.size() - kSuffix.size());
  REMUSD_ASSIGN(const json kvm, qmp->call("query-kvm"));
  out.facts.accelerator = kvm.is_object() && kvm.value("enabled", json()) == true ? "kvm" : "tcg";
  REMUSD_TRY(features(qmp, &out.facts));
  REMUSD_TRY(memory(qmp, &out));
  REMUSD_TRY(devices(qmp, &out.facts));
  return out;
}

}  // namespace remusd::guest::qemu
