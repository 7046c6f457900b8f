// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/definition.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>
#include <span>
#include <utility>

#include "guest/arguments.h"
#include "guest/definition_limits.h"

namespace remusd::guest {
namespace {

constexpr std::string_view kLower = "abcdefghijklmnopqrstuvwxyz";
constexpr std::string_view kUpper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
constexpr std::string_view kDigits = "0123456789";

bool only(std::string_view text, std::initializer_list<std::string_view> classes) {
  return std::all_of(text.begin(), text.end(), [&](char c) {
    return std::any_of(classes.begin(), classes.end(),
                       [c](std::string_view set) { return set.find(c) != std::string_view::npos; });
  });
}

/// Printable UTF-8 on one line: what may stand in a command line, in JSON and in a log.
bool is_text(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    if (lead < 0x20 || lead == 0x7f) return false;
    if (lead < 0x80) continue;
    const size_t more = lead >= 0xc2 && lead < 0xe0 ? 1 : lead >= 0xe0 && lead < 0xf0 ? 2 : 3;
    if (lead < 0xc2 || lead > 0xf4 || i + more > text.size()) return false;
    const auto second = static_cast<unsigned char>(text[i]);
    // Overlong forms, surrogates and what is beyond U+10FFFF.
    if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
        (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) {
      return false;
    }
    for (size_t k = 0; k < more; ++k, ++i) {
      if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return false;
    }
  }
  return true;
}

/// Part of an input that is fit for a message.
std::string shown(std::string_view text) {
  std::string out = "'";
  for (const char c : text.substr(0, 64)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out + (text.size() > 64 ? "...'" : "'");
}

Status wrong(const std::string& field, std::string_view value, std::string_view allowed) {
  return {Code::invalid, field + ": " + shown(value) + " is not allowed; allowed: " + std::string(allowed)};
}

Status check_text(const std::string& field, const std::string& text, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return {Code::invalid, field + ": " + std::to_string(text.size()) + " bytes; allowed: at most " +
                               std::to_string(max_bytes)};
  }
  if (!is_text(text)) return wrong(field, text, "printable UTF-8 without line breaks");
  return {};
}

Status check_range(const std::string& field, uint64_t value, uint64_t low, uint64_t high) {
  if (value >= low && value <= high) return {};
  return {Code::invalid, field + ": " + std::to_string(value) + " is not allowed; allowed: " +
                             std::to_string(low) + " to " + std::to_string(high)};
}

Status check_path(const std::string& field, const std::string& path) {
  if (path.empty()) return {};
  REMUSD_TRY(check_text(field, path, kMaxPathBytes));
  if (!path.starts_with('/')) return wrong(field, path, "an absolute path");
  return {};
}

bool is_version(std::string_view text) {
  const size_t dot = text.find('.');
  return dot != std::string_view::npos && dot > 0 && dot + 1 < text.size() && text.size() <= 8 &&
         only(text.substr(0, dot), {kDigits}) && only(text.substr(dot + 1), {kDigits});
}

Status check_machine(const std::string& machine) {
  if (machine == "pc" || machine == "q35") return {};
  for (const std::string_view family : {"pc-i440fx-", "pc-q35-"}) {
    if (machine.starts_with(family) && is_version(std::string_view(machine).substr(family.size()))) return {};
  }
  return wrong("machine", machine, "pc, q35, pc-i440fx-VERSION or pc-q35-VERSION, as in pc-q35-7.2");
}

Status check_interface(const std::string& field, const std::string& name) {
  // The kernel's own limit is IFNAMSIZ - 1; the characters are those that need no quoting anywhere.
  if (!name.empty() && name.size() <= kMaxInterfaceBytes && only(name, {kLower, kUpper, kDigits, "._-"}) &&
      !name.starts_with('.') && !name.starts_with('-')) {
    return {};
  }
  return wrong(field, name, "an interface name of 1 to 15 letters, digits, '.', '_', '-'");
}

Status check_mac(const std::string& field, const std::string& mac) {
  constexpr std::string_view kAllowed =
      "six pairs of hex digits with ':', unicast and not all zero, as in 52:54:00:12:34:56";
  bool well_formed = mac.size() == 17;
  for (size_t i = 0; well_formed && i < mac.size(); ++i) {
    well_formed = i % 3 == 2 ? mac[i] == ':' : only(mac.substr(i, 1), {kDigits, "abcdef"});
  }
  if (!well_formed || mac == "00:00:00:00:00:00") return wrong(field, mac, kAllowed);
  // The lowest bit of the first octet marks a group address.
  const bool group = std::string_view("13579bdf").find(mac[1]) != std::string_view::npos;
  return group ? wrong(field, mac, kAllowed) : Status();
}

uint32_t hash_of(std::string_view name, size_t index) {
  const std::string text = std::string(name) + '#' + std::to_string(index);
  return static_cast<uint32_t>(XXH3_64bits(text.data(), text.size()));
}

std::string derived_mac(std::string_view name, size_t index) {
  const uint32_t hash = hash_of(name, index);
  std::array<char, 18> text{};
  std::snprintf(text.data(), text.size(), "52:54:00:%02x:%02x:%02x", (hash >> 16) & 0xff, (hash >> 8) & 0xff,
                hash & 0xff);
  return text.data();
}

std::string derived_tap(std::string_view name, size_t index) {
  // "rm-" marks interfaces of ours. Up to 15 characters with "-N" (index < 10) behind the name.
  const std::string suffix = "-" + std::to_string(index);
  std::string plain = "rm-" + std::string(name) + suffix;
  if (plain.size() <= kMaxInterfaceBytes) return plain;
  std::array<char, 9> hash{};
  std::snprintf(hash.data(), hash.size(), "%06x", hash_of(name, 0) & 0xffffff);
  return "rm-" + std::string(name.substr(0, 4)) + hash.data() + suffix;
}

void complete(Definition* definition) {
  for (size_t i = 0; i < definition->nics.size(); ++i) {
    NicDefinition& nic = definition->nics[i];
    if (nic.mac.empty()) nic.mac = derived_mac(definition->name, i);
    for (char& c : nic.mac) c = c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
    if (nic.tap.empty()) nic.tap = derived_tap(definition->name, i);
  }
  for (size_t i = 0; i < definition->disks.size(); ++i) {
    DiskDefinition& disk = definition->disks[i];
    if (disk.name.empty()) disk.name = "disk" + std::to_string(i);
    if (disk.backup_path.empty()) disk.backup_path = disk.path;
  }
}

Status check_model(const std::string& field, std::string_view model,
                   std::span<const std::string_view> models) {
  if (std::find(models.begin(), models.end(), model) != models.end()) return {};
  std::string allowed;
  for (const std::string_view one : models) allowed += (allowed.empty() ? "" : ", ") + std::string(one);
  return wrong(field, model, allowed);
}

Status check_nics(const Definition& definition) {
  std::set<std::string> macs, taps;
  for (size_t i = 0; i < definition.nics.size(); ++i) {
    const NicDefinition& nic = definition.nics[i];
    const std::string field = "nics[" + std::to_string(i) + "].";
    REMUSD_TRY(check_model(field + "model", nic.model, kNicModels));
    REMUSD_TRY(check_mac(field + "mac", nic.mac));
    REMUSD_TRY(check_interface(field + "tap", nic.tap));
    if (!nic.bridge.empty()) REMUSD_TRY(check_interface(field + "bridge", nic.bridge));
    if (nic.bridge == nic.tap) return wrong(field + "tap", nic.tap, "another name than the bridge's");
    if (!macs.insert(nic.mac).second) return wrong(field + "mac", nic.mac, "a MAC of its own");
    if (!taps.insert(nic.tap).second) return wrong(field + "tap", nic.tap, "a TAP of its own");
  }
  return {};
}

Status check_disk_path(const std::string& field, const std::string& path, std::set<std::string>* taken) {
  if (path.empty()) return {Code::invalid, field + " is missing; allowed: an absolute path"};
  REMUSD_TRY(check_path(field, path));
  return taken->insert(path).second ? Status() : wrong(field, path, "a file or block device of its own");
}

Status check_disks(const Definition& definition) {
  if (definition.disks.empty()) return {};
  if (definition.driver != "qemu") {
    return {Code::invalid, "disks: not allowed with driver " + definition.driver + "; allowed: qemu"};
  }
  if (!definition.attach_qmp.empty()) {
    return {Code::invalid,
            "disks: not allowed together with attach_qmp; have remusd start a guest that has disks"};
  }
  std::set<std::string> names, paths, backup_paths;
  for (size_t i = 0; i < definition.disks.size(); ++i) {
    const DiskDefinition& disk = definition.disks[i];
    const std::string field = "disks[" + std::to_string(i) + "].";
    if (disk.name.size() > kMaxDiskNameBytes || !only(disk.name.substr(0, 1), {kLower}) ||
        !only(disk.name, {kLower, kDigits, "-"})) {
      return wrong(field + "name", disk.name, "1 to 16 of a-z, 0-9, '-', the first a letter");
    }
    if (!names.insert(disk.name).second) return wrong(field + "name", disk.name, "a name of its own");
    REMUSD_TRY(check_disk_path(field + "path", disk.path, &paths));
    REMUSD_TRY(check_disk_path(field + "backup_path", disk.backup_path, &backup_paths));
    if (disk.mode != DiskDefinition::kReplicate && disk.mode != DiskDefinition::kHold) {
      return wrong(field + "mode", disk.mode, "replicate, hold");
    }
    REMUSD_TRY(check_model(field + "model", disk.model, kDiskModels));
  }
  return {};
}

Status check_boot(const Definition& definition) {
  REMUSD_TRY(check_path("kernel", definition.kernel));
  REMUSD_TRY(check_path("initrd", definition.initrd));
  REMUSD_TRY(check_text("append", definition.append, kMaxAppendBytes));
  if (definition.kernel.empty() && !definition.initrd.empty()) {
    return wrong("initrd", definition.initrd, "an initrd only together with a kernel");
  }
  if (definition.kernel.empty() && !definition.append.empty()) {
    return wrong("append", definition.append, "kernel arguments only together with a kernel");
  }
  return check_path("serial_log", definition.serial_log);
}

Status check_list(const std::string& field, const std::vector<std::string>& list, size_t max_elements) {
  if (list.size() > max_elements) {
    return {Code::invalid, field + ": " + std::to_string(list.size()) + " elements; allowed: at most " +
                               std::to_string(max_elements)};
  }
  for (size_t i = 0; i < list.size(); ++i) {
    REMUSD_TRY(check_text(field + "[" + std::to_string(i) + "]", list[i], kMaxArgumentBytes));
  }
  return {};
}

Status check_attach(const Definition& definition) {
  REMUSD_TRY(check_list("attach_command", definition.attach_command, kMaxCommandArguments));
  if (definition.attach_qmp.empty()) {
    if (definition.attach_command.empty()) return {};
    return {Code::invalid, "attach_command: allowed only together with attach_qmp"};
  }
  if (definition.driver != "qemu") {
    return wrong("attach_qmp", definition.attach_qmp, "attaching only with driver qemu");
  }
  REMUSD_TRY(check_path("attach_qmp", definition.attach_qmp));
  if (definition.attach_qmp.size() > kMaxSocketPathBytes) {
    return wrong("attach_qmp", definition.attach_qmp, "a socket path of at most 107 bytes");
  }
  return check_arguments(definition.attach_command, ArgumentsOf::attached, "attach_command");
}

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && only(name.substr(0, 1), {kLower, kDigits}) &&
         only(name, {kLower, kDigits, "._-"});
}

}  // namespace

bool holds_disks(const Definition& definition) {
  return std::ranges::any_of(definition.disks, &DiskDefinition::held);
}

Status complete_and_validate(Definition* definition) {
  Definition& d = *definition;
  if (!is_name(d.name)) {
    return wrong("name", d.name, "1 to 32 of a-z, 0-9, '.', '_', '-', the first a letter or digit");
  }
  const bool sim = d.driver == "sim";
  if (!sim && d.driver != "qemu") return wrong("driver", d.driver, "qemu, sim");
  REMUSD_TRY(check_machine(d.machine));
  if (d.accelerator != "kvm" && d.accelerator != "tcg") {
    return wrong("accelerator", d.accelerator, "kvm, tcg");
  }
  // Commas separate a model's flags; anything else would reach QEMU's own parser unseen.
  if (d.cpu.size() > kMaxCpuBytes || !only(d.cpu, {kLower, kUpper, kDigits, "._+-=,"})) {
    return wrong("cpu", d.cpu, "a QEMU CPU model with flags, as in max,avx512f=off");
  }
  REMUSD_TRY(check_range("vcpus", d.vcpus, 1, kMaxVcpus));
  REMUSD_TRY(check_range("memory_mib", d.memory_mib, sim ? 1 : kMinQemuMemoryMib, kMaxMemoryMib));
  if (d.nics.size() > kMaxNics) {
    return {Code::invalid, "nics: " + std::to_string(d.nics.size()) + " cards; allowed: at most " +
                               std::to_string(kMaxNics)};
  }
  if (d.disks.size() > kMaxDisks) {
    return {Code::invalid, "disks: " + std::to_string(d.disks.size()) + " disks; allowed: at most " +
                               std::to_string(kMaxDisks)};
  }
  REMUSD_TRY(check_boot(d));
  REMUSD_TRY(check_list("extra_args", d.extra_args, kMaxExtraArguments));
  REMUSD_TRY(check_arguments(d.extra_args, ArgumentsOf::extra, "extra_args"));
  REMUSD_TRY(check_attach(d));
  REMUSD_TRY(check_range("sim.dirty_pages_per_ms", d.sim.dirty_pages_per_ms, 0, kMaxSimDirtyPagesPerMs));
  complete(definition);
  REMUSD_TRY(check_nics(d));
  return check_disks(d);
}

Definition of_the_other_host(Definition definition) {
  for (DiskDefinition& disk : definition.disks) std::swap(disk.path, disk.backup_path);
  return definition;
}

}  // namespace remusd::guest
