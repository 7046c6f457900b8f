// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/command.h"

#include <array>
#include <cstdio>

#include "guest/definition_limits.h"
#include "guest/qemu/options.h"

namespace remusd::guest::qemu {
namespace {

// Slots below are taken by the chipset (pc: 0 and 1); those from 0x1b on too on q35.
constexpr unsigned kFirstNicSlot = 3, kFirstDiskSlot = kFirstNicSlot + kMaxNics;
static_assert(kFirstDiskSlot + kMaxDisks - 1 <= 0x1a);

std::string base_path(const Definition& definition, const DriverOptions& options) {
  return options.runtime_dir + "/" + definition.name;
}

/// ",bus=B,addr=S" of a slot.
std::string address(bool q35, size_t slot) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), ",bus=%s,addr=0x%zx", q35 ? "pcie.0" : "pci.0", slot);
  return text.data();
}

/// A model of ours as QEMU has it.
std::string device_of(std::string_view model) {
  if (!model.ends_with(kLegacy)) return std::string(model);
  return std::string(model.substr(0, model.size() - kLegacy.size())) + ",disable-modern=on";
}

void add_disks(const Definition& definition, const std::vector<DiskEndpoint>& disks, bool q35,
               std::vector<std::string>* argv) {
  for (size_t i = 0; i < disks.size(); ++i) {
    const DiskEndpoint& disk = disks[i];
    const std::string node = "disk-" + disk.name;
    // Flushes reach the server, and so do trims: what a change is worth is decided there.
    argv->insert(
        argv->end(),
        {"-blockdev",
         "driver=nbd,node-name=" + node + ",server.type=unix,server.path=" + escape_commas(disk.socket_path) +
             ",export=,reconnect-delay=" + std::to_string(kDiskReconnectSeconds) +
             ",discard=unmap,cache.direct=off,cache.no-flush=off" + (disk.read_only ? ",read-only=on" : "")});
    // A disk that fails is the guest's own affair, as on a real machine: QEMU must not stop it then.
    argv->insert(
        argv->end(),
        {"-device", device_of(definition.disks[i].model) + ",id=" + node + ",drive=" + node +
                        ",serial=" + disk.name + ",bootindex=" + std::to_string(i + 1) +
                        ",write-cache=on,rerror=report,werror=report" + address(q35, kFirstDiskSlot + i)});
  }
}

}  // namespace

std::string awake_path(const Definition& definition, const DriverOptions& options) {
  return base_path(definition, options) + ".awake";
}

Result<Paths> paths_of(const Definition& definition, const DriverOptions& options) {
  const std::string base = base_path(definition, options);
  Paths paths{base + ".qmp", base + ".fast.qmp", base + ".log"};
  if (paths.fast.size() > kMaxSocketPathBytes) {
    return Status(Code::invalid, "runtime_dir: '" + options.runtime_dir + "' is too long, the socket '" +
                                     paths.fast + "' would exceed 107 bytes");
  }
  return paths;
}

std::vector<NicEndpoint> nic_endpoints(const Definition& definition, const DriverOptions& options) {
  std::vector<NicEndpoint> nics;
  for (size_t i = 0; i < definition.nics.size(); ++i) {
    const NicDefinition& nic = definition.nics[i];
    const std::string id = "net" + std::to_string(i);
    nics.push_back({id, nic.mac, base_path(definition, options) + "." + id, nic.bridge, nic.tap});
  }
  return nics;
}

Result<std::vector<DiskEndpoint>> disk_endpoints(const Definition& definition, const DriverOptions& options) {
  std::vector<DiskEndpoint> disks;
  for (const DiskDefinition& disk : definition.disks) {
    const std::string socket = base_path(definition, options) + "." + disk.name + ".nbd";
    if (socket.size() > kMaxSocketPathBytes) {
      return Status(Code::invalid, "runtime_dir: '" + options.runtime_dir + "' is too long, the socket '" +
                                       socket + "' would exceed 107 bytes");
    }
    disks.push_back({disk.name, socket, disk.path, disk.read_only});
  }
  return disks;
}

std::vector<std::string> build_command(const Definition& definition, const DriverOptions& options,
                                       const std::vector<NicEndpoint>& nics,
                                       const std::vector<DiskEndpoint>& disks, Role role) {
  const std::string memory = std::to_string(definition.memory_mib) + "M";
  const bool q35 = definition.machine.find("q35") != std::string::npos;
  std::vector<std::string> argv{
      options.qemu_binary,
      "-name",
      "guest=" + definition.name + ",debug-threads=on",
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-vga",
      "none",
      "-machine",
      "type=" + definition.machine + ",memory-backend=ram0",
      "-object",
      "memory-backend-memfd,id=ram0,size=" + memory + ",share=on",
      "-m",
      memory,
      "-smp",
      std::to_string(definition.vcpus),
      "-accel",
      definition.accelerator == "tcg" ? "tcg,thread=multi" : definition.accelerator,
  };
  const auto add = [&argv](std::initializer_list<std::string> more) { argv.insert(argv.end(), more); };
  if (!definition.cpu.empty()) add({"-cpu", definition.cpu});
  if (!definition.kernel.empty()) add({"-kernel", definition.kernel});
  if (!definition.initrd.empty()) add({"-initrd", definition.initrd});
  if (!definition.append.empty()) add({"-append", definition.append});
  if (definition.serial_log.empty()) {
    add({"-serial", "null"});
  } else {
    // Appended to: the standby opens it too, and must not cut it off.
    add({"-chardev", "file,id=serial0,append=on,path=" + escape_commas(definition.serial_log), "-serial",
         "chardev:serial0"});
  }
  for (size_t i = 0; i < nics.size(); ++i) {
    add({"-netdev", "stream,id=" + nics[i].id +
                        ",server=on,addr.type=unix,addr.path=" + escape_commas(nics[i].socket_path)});
    // Without a boot ROM: it would be one more RAM block to carry over at promotion.
    add({"-device", device_of(definition.nics[i].model) + ",id=nic" + std::to_string(i) + ",netdev=" +
                        nics[i].id + ",mac=" + nics[i].mac + address(q35, kFirstNicSlot + i) + ",romfile="});
  }
  add_disks(definition, disks, q35, &argv);
  // A panic is the guest's own affair, as on a real machine.
  add({"-action", "panic=none"});
  argv.insert(argv.end(), definition.extra_args.begin(), definition.extra_args.end());
  append_own_options(role, &argv);
  return argv;
}

void append_own_options(Role role, std::vector<std::string>* argv) {
  argv->insert(argv->end(), {
                                "-machine",
                                "suppress-vmdesc=on",
                                "-global",
                                "migration.send-configuration=off",
                                "-chardev",
                                "socket,id=remusd-monitor,fd=3,server=on,wait=off",
                                "-mon",
                                "chardev=remusd-monitor,mode=control",
                                "-chardev",
                                "socket,id=remusd-fast,fd=4,server=on,wait=off",
                                "-mon",
                                "chardev=remusd-fast,mode=control",
                            });
  if (role == Role::standby) argv->insert(argv->end(), {"-incoming", "defer"});
}

}  // namespace remusd::guest::qemu
