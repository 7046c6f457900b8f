// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/attached.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "guest/arguments.h"
#include "guest/qemu/options.h"

namespace remusd::guest::qemu {
namespace {

struct Option {
  std::string_view name;  // with one dash
  std::string value;      // empty for those that have none
};

// Options without a value; all others have one.
constexpr std::string_view kFlags[] = {
    "-nodefaults",
    "-no-user-config",
    "-enable-kvm",
    "-S",
    "-s",
    "-daemonize",
    "-nographic",
    "-no-acpi",
    "-no-hpet",
    "-no-reboot",
    "-no-shutdown",
    "-usb",
    "-full-screen",
    "-no-fd-bootchk",
    "-win2k-hack",
    "-mem-prealloc",
    "-only-migratable",
    "-preconfig",
    "-singlestep",
    "-nouserconfig",
    "-no-kvm",
    "-snapshot",
    "-portrait",
};

// Belongs to the process that was attached to, not to the machine: the standby has its own, or none.
constexpr std::string_view kDropped[] = {
    "-qmp",
    "-qmp-pretty",
    "-monitor",
    "-mon",
    "-pidfile",
    "-daemonize",
    "-D",
    "-d",
    "-S",
    "-s",
    "-gdb",
    "-incoming",
    "-display",
    "-vnc",
    "-spice",
    "-nographic",
    "-full-screen",
    "-portrait",
    "-trace",
    "-name",
    "-runas",
    "-chroot",
    "-only-migratable",
    "-mem-prealloc",
    "-parallel",
    "-serial",
    "-audio",
    "-audiodev",
};

struct Refusal {
  std::string_view name, why;
};
constexpr Refusal kRefused[] = {
    {"-loadvm", "start it without"},
    {"-add-fd", "its descriptors are unknown to the standby"},
    {"-numa", "one memory backend only: use -machine memory-backend=ram0"},
    {"-mem-path", "use -object memory-backend-memfd,id=ram0,size=SIZE,share=on -machine memory-backend=ram0"},
    {"-drive", "disks are not protected yet: start the guest without"},
    {"-blockdev", "disks are not protected yet: start the guest without"},
    {"-hda", "disks are not protected yet: start the guest without"},
    {"-hdb", "disks are not protected yet: start the guest without"},
    {"-hdc", "disks are not protected yet: start the guest without"},
    {"-hdd", "disks are not protected yet: start the guest without"},
    {"-cdrom", "disks are not protected yet: start the guest without"},
    {"-fda", "disks are not protected yet: start the guest without"},
    {"-fdb", "disks are not protected yet: start the guest without"},
    {"-sd", "disks are not protected yet: start the guest without"},
    {"-mtdblock", "disks are not protected yet: start the guest without"},
    {"-pflash", "firmware in flash is written by the guest: use -bios"},
};

// Devices with memory of their own that is not in the tracked RAM.
constexpr std::string_view kMemoryDevices[] = {
    "VGA",         "vga",           "secondary-vga", "qxl",     "virtio-gpu", "virtio-vga",     "cirrus-vga",
    "vmware-svga", "bochs-display", "ramfb",         "ati-vga", "isa-vga",    "isa-cirrus-vga", "tpm-"};

template <typename List>
bool contains(const List& list, std::string_view word) {
  return std::find(std::begin(list), std::end(list), word) != std::end(list);
}

Result<std::vector<Option>> split(const std::vector<std::string>& argv) {
  std::vector<Option> options;
  for (size_t i = 1; i < argv.size(); ++i) {
    std::string_view name = argv[i];
    if (name.starts_with("--")) name.remove_prefix(1);
    if (!name.starts_with('-')) {
      return Status(Code::unsafe, "attached guest: '" + argv[i].substr(0, 80) +
                                      "' belongs to no option, so QEMU takes it for a disk");
    }
    Option option{name, {}};
    if (!contains(kFlags, name)) {
      if (i + 1 == argv.size()) {
        return Status(Code::invalid, "attached guest: option '" + argv[i] + "' lacks its value");
      }
      option.value = argv[++i];
    }
    options.push_back(std::move(option));
  }
  return options;
}

std::string absolute(const std::string& path, const std::string& directory) {
  return path.starts_with('/') || path.empty() ? path : directory + "/" + path;
}

Status refuse(std::string_view option, const std::string& why) {
  return {Code::unsafe, "attached guest: '" + std::string(option) + "' cannot be protected: " + why};
}

Status check_option(const Option& option) {
  for (const Refusal& refusal : kRefused) {
    if (option.name == refusal.name) return refuse(option.name, std::string(refusal.why));
  }
  if (option.name == "-vga" && option.value != "none") return refuse("-vga " + option.value, "use -vga none");
  if ((option.name == "-nic" || option.name == "-net") && option.value != "none") {
    return refuse(option.name, "use -netdev stream and -device");
  }
  if (option.name == "-device") {
    REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "driver"));
    for (const std::string_view device : kMemoryDevices) {
      if (list.get("driver").starts_with(device)) {
        return refuse("-device " + list.get("driver"), "its own memory is not covered; leave it out");
      }
    }
  }
  if (option.name == "-netdev") {
    REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "type"));
    const bool ours = list.get("type") == "stream" && list.get("server") == "on" &&
                      list.get("addr.type") == "unix" && list.get("addr.path").starts_with('/');
    if (!ours) {
      return refuse(
          "-netdev " + list.get("id"),
          "use stream,id=ID,server=on,addr.type=unix,addr.path=/SOCKET, so that its packets can be held");
    }
  }
  if (option.name == "-object") {
    REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "qom-type"));
    const std::string type = list.get("qom-type");
    if (type.starts_with("filter-") || type.starts_with("colo-")) {
      return refuse("-object " + type, "it stands between the guest and remusd's gate");
    }
    if (type.starts_with("memory-backend")) {
      const bool shared = (type == "memory-backend-memfd" || type == "memory-backend-file") &&
                          list.get("share") != "off" &&
                          (type == "memory-backend-memfd" || list.get("share") == "on");
      if (!shared) return refuse("-object " + type, "use memory-backend-memfd,share=on");
      if (list.get("hugetlb") == "on") return refuse("-object " + type, "huge pages are not tracked");
    }
  }
  return {};
}

template <typename T>
bool plain_number(const std::string& text, T* out) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value == 0) return false;
  *out = value;
  return end == text.data() + text.size() || *end == ',' || *end == 'M' || *end == 'm';
}

}  // namespace

Status describe_command(const std::vector<std::string>& argv, const std::string& directory,
                        Definition* definition) {
  REMUSD_TRY(check_arguments(argv, ArgumentsOf::attached, "attached guest"));
  REMUSD_ASSIGN(const std::vector<Option> options, split(argv));
  std::vector<std::string> macs, models;
  bool nodefaults = false;
  for (const Option& option : options) {
    REMUSD_TRY(check_option(option));
    if (option.name == "-nodefaults") nodefaults = true;
    if (option.name == "-kernel") definition->kernel = absolute(option.value, directory);
    if (option.name == "-initrd") definition->initrd = absolute(option.value, directory);
    if (option.name == "-append") definition->append = option.value;
    if (option.name == "-smp") {
      REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "cpus"));
      (void)plain_number(list.get("cpus"), &definition->vcpus);
    }
    if (option.name == "-device") {
      REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "driver"));
      if (list.get("netdev").empty()) continue;
      if (list.get("mac").empty()) {
        return refuse("-device " + list.get("driver"),
                      "give the card its mac=, so that both sides agree on it");
      }
      if (list.get("addr").empty()) {
        return refuse("-device " + list.get("driver"),
                      "give the card its addr=SLOT, so that both sides agree on it");
      }
      models.push_back(list.get("driver"));
      macs.push_back(list.get("mac"));
    }
  }
  if (!nodefaults) {
    return refuse(
        argv[0], "without -nodefaults it has devices that cannot be carried over; start it with -nodefaults");
  }
  definition->attach_command = argv;
  definition->nics.resize(macs.size());
  for (size_t i = 0; i < macs.size(); ++i) {
    definition->nics[i].model = models[i];
    definition->nics[i].mac = macs[i];
  }
  return {};
}

Result<std::vector<NicEndpoint>> attached_nics(const Definition& definition) {
  REMUSD_ASSIGN(const std::vector<Option> options, split(definition.attach_command));
  std::vector<NicEndpoint> nics;
  for (const Option& device : options) {
    if (device.name != "-device") continue;
    REMUSD_ASSIGN(const OptionList card, OptionList::parse(device.value, "driver"));
    if (card.get("netdev").empty()) continue;
    NicEndpoint nic{card.get("netdev"), card.get("mac"), {}, {}, {}};
    if (nics.size() < definition.nics.size()) {
      nic.bridge = definition.nics[nics.size()].bridge;
      nic.tap = definition.nics[nics.size()].tap;
    }
    for (const Option& option : options) {
      if (option.name != "-netdev") continue;
      REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "type"));
      if (list.get("id") == nic.id) nic.socket_path = list.get("addr.path");
    }
    if (nic.socket_path.empty()) return refuse("-device " + card.get("driver"), "it has no -netdev stream");
    nics.push_back(std::move(nic));
  }
  return nics;
}

Result<std::vector<std::string>> standby_command(const Definition& definition, const DriverOptions& options,
                                                 const std::vector<NicEndpoint>& nics) {
  // It came over the wire: check again what is built from it.
  REMUSD_TRY(check_arguments(definition.attach_command, ArgumentsOf::attached, "attached guest"));
  REMUSD_ASSIGN(const std::vector<Option> given, split(definition.attach_command));
  std::vector<std::string> monitors, serials;
  for (const Option& option : given) {
    REMUSD_TRY(check_option(option));
    if (option.name == "-mon") {
      REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "chardev"));
      monitors.push_back(list.get("chardev"));
    }
    for (const std::string_view prefix : {"chardev:", "mon:chardev:"}) {
      const bool takes = option.name == "-serial" || option.name == "-qmp" || option.name == "-monitor" ||
                         option.name == "-parallel";
      if (takes && option.value.starts_with(prefix)) monitors.push_back(option.value.substr(prefix.size()));
    }
    if (option.name == "-serial" && option.value != "none") serials.emplace_back("null");
  }

  std::vector<std::string> argv{options.qemu_binary, "-name",
                                "guest=" + definition.name + ",debug-threads=on"};
  const auto add = [&argv](std::string_view name, std::string value) {
    argv.emplace_back(name);
    argv.push_back(std::move(value));
  };
  for (const Option& option : given) {
    if (contains(kDropped, option.name)) continue;
    if (option.name == "-kernel") {
      add("-kernel", definition.kernel);
    } else if (option.name == "-initrd") {
      add("-initrd", definition.initrd);
    } else if (option.name == "-chardev") {
      REMUSD_ASSIGN(const OptionList list, OptionList::parse(option.value, "backend"));
      if (!contains(monitors, list.get("id"))) add("-chardev", "null,id=" + escape_commas(list.get("id")));
    } else if (option.name == "-netdev") {
      REMUSD_ASSIGN(OptionList list, OptionList::parse(option.value, "type"));
      const auto nic = std::find_if(nics.begin(), nics.end(),
                                    [&list](const NicEndpoint& other) { return other.id == list.get("id"); });
      if (nic == nics.end()) return refuse("-netdev " + list.get("id"), "no card uses it");
      list.set("addr.path", nic->socket_path);
      add("-netdev", list.text("type"));
    } else if (option.name == "-object") {
      REMUSD_ASSIGN(OptionList list, OptionList::parse(option.value, "qom-type"));
      if (list.get("qom-type") == "memory-backend-file") {
        for (const char* key : {"mem-path", "discard-data", "align", "pmem", "readonly"}) list.remove(key);
        list.set("qom-type", "memory-backend-memfd");
      }
      add("-object", list.text("qom-type"));
    } else if (contains(kFlags, option.name)) {
      argv.emplace_back(option.name);
    } else {
      add(option.name, option.value);
    }
  }
  add("-display", "none");
  for (size_t i = 0; i < serials.size(); ++i) {
    if (i == 0 && !definition.serial_log.empty()) {
      add("-chardev", "file,id=remusd-serial,append=on,path=" + escape_commas(definition.serial_log));
      add("-serial", "chardev:remusd-serial");
    } else {
      add("-serial", serials[i]);
    }
  }
  append_own_options(Role::standby, &argv);
  return argv;
}

}  // namespace remusd::guest::qemu
