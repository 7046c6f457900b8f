// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/arguments.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

namespace remusd::guest {
namespace {

struct Refused {
  std::string_view prefix;  // of the device's type
  std::string_view why;
};

constexpr Refused kDevices[] = {
    {"vfio-", "a passed-through device keeps state that cannot be saved"},
    {"pci-assign", "a passed-through device keeps state that cannot be saved"},
    {"kvm-pci-assign", "a passed-through device keeps state that cannot be saved"},
    {"usb-host", "a passed-through device keeps state that cannot be saved"},
    {"usb-redir", "a redirected device keeps state that cannot be saved"},
    {"scsi-generic", "a passed-through SCSI device writes past remusd"},
    {"scsi-block", "a passed-through SCSI device writes past remusd"},
    {"ivshmem", "its memory is shared with others and not tracked"},
    {"vhost-user", "another process writes the guest's memory untracked"},
    {"vhost-scsi", "a passed-through SCSI target writes past remusd"},
    {"vhost-vdpa", "a passed-through device keeps state that cannot be saved"},
    {"vhost-vsock", "its output would not be held back"},
    {"pc-dimm", "memory beyond memory_mib is not tracked"},
    {"nvdimm", "memory beyond memory_mib is not tracked"},
    {"virtio-mem", "memory beyond memory_mib is not tracked"},
    {"virtio-pmem", "memory beyond memory_mib is not tracked"},
    {"cxl-", "memory beyond memory_mib is not tracked"},
    {"virtio-9p", "a shared file system is changed before the backup has acknowledged"},
};

// Options that nobody may use, whoever started QEMU.
constexpr Refused kOptions[] = {
    {"-snapshot", "disk changes would be lost at a failover"},
    {"-tpmdev", "the TPM's state is outside QEMU"},
    {"-virtfs", "a shared file system is changed before the backup has acknowledged"},
    {"-fsdev", "a shared file system is changed before the backup has acknowledged"},
    {"-usbdevice", "use -device, so that remusd can see what it is"},
    {"-readconfig", "remusd cannot see what a configuration file adds; give the options themselves"},
};

// What remusd itself writes on the command line.
constexpr std::string_view kOwnOptions[] = {
    "-incoming",   "-machine",     "-M",      "-accel",  "-enable-kvm", "-cpu",     "-smp",
    "-m",          "-mem-path",    "-numa",   "-kernel", "-initrd",     "-append",  "-qmp",
    "-name",       "-daemonize",   "-loadvm", "-S",      "-preconfig",  "-pidfile", "-mem-prealloc",
    "-qmp-pretty", "-no-shutdown", "-add-fd",
};

constexpr std::string_view kDiskOptions[] = {"-drive", "-blockdev", "-hda",    "-hdb", "-hdc", "-hdd",
                                             "-sd",    "-mtdblock", "-pflash", "-fda", "-fdb"};
constexpr std::string_view kNetOptions[] = {"-netdev", "-nic", "-net"};

// Options without a value: the word behind one of them stands for itself.
constexpr std::string_view kFlags[] = {
    "-nodefaults",      "-nographic",           "-no-acpi",
    "-no-hpet",         "-no-reboot",           "-no-shutdown",
    "-no-fd-bootchk",   "-no-user-config",      "-enable-kvm",
    "-snapshot",        "-daemonize",           "-S",
    "-singlestep",      "-full-screen",         "-no-quit",
    "-alt-grab",        "-ctrl-grab",           "-usb",
    "-win2k-hack",      "-mem-prealloc",        "-preconfig",
    "-only-migratable", "-enable-sync-profile", "-semihosting",
    "-xen-attach",      "-xen-domid-restrict",
};

std::string_view normalized(std::string_view option) {
  if (option.starts_with("--")) option.remove_prefix(1);  // QEMU takes both forms.
  return option;
}

template <size_t N>
bool contains(const std::string_view (&list)[N], std::string_view word) {
  return std::find(std::begin(list), std::end(list), word) != std::end(list);
}

/// The value of `key` in QEMU's "first,key=value" or JSON syntax; `first` names the key of the leading
/// value that has none. Empty when absent.
std::string option_value(const std::string& text, std::string_view first, std::string_view key) {
  if (text.starts_with('{')) {
    const auto object = nlohmann::json::parse(text, nullptr, false);
    if (!object.is_object()) return {};
    const auto found = object.find(key);
    if (found == object.end()) return {};
    if (found->is_boolean()) return found->get<bool>() ? "on" : "off";
    return found->is_string() ? found->get<std::string>() : std::string();
  }
  std::string value;
  size_t at = 0;
  for (bool leading = true; at <= text.size(); leading = false) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string_view part = std::string_view(text).substr(at, end - at);
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) {
      if (leading && key == first) value = part;
      if (!leading && part == key) value = "on";
    } else if (part.substr(0, equals) == key) {
      value = part.substr(equals + 1);  // The last one counts.
    }
    at = end + 1;
  }
  return value;
}

bool read_only(const std::string& value) {
  return option_value(value, "", "readonly") == "on" || option_value(value, "", "read-only") == "on";
}

class Checker {
 public:
  Checker(ArgumentsOf origin, const std::string& field) : origin_(origin), field_(field) {}

  Status check(size_t index, std::string_view option, const std::string& value) {
    where_ = field_ + "[" + std::to_string(index) + "]: '" + std::string(option.substr(0, 32)) + "'";
    for (const Refused& refused : kOptions) {
      if (option == refused.prefix) return unsafe(refused.why);
    }
    if (origin_ == ArgumentsOf::extra && contains(kOwnOptions, option)) {
      return Status(Code::invalid, where_ + " is set by remusd; use the definition's own fields");
    }
    if (option == "-device") return check_device(option_value(value, "driver", "driver"));
    if (option == "-object" && origin_ == ArgumentsOf::extra &&
        option_value(value, "qom-type", "qom-type").starts_with("memory-backend")) {
      return unsafe("memory beyond memory_mib is not tracked");
    }
    if (contains(kDiskOptions, option) && !read_only(value)) {
      return unsafe(
          "disk writes are not held back and would run ahead of the backup; declare disks in the definition, "
          "or use read-only ones (readonly=on, read-only=on)");
    }
    if (contains(kNetOptions, option)) return check_net(option, option_value(value, "type", "type"));
    return {};
  }

 private:
  Status unsafe(std::string_view why) const {
    return {Code::unsafe, where_ + " cannot be protected: " + std::string(why)};
  }

  Status check_device(const std::string& type) {
    where_ += " of type '" + type.substr(0, 64) + "'";
    for (const Refused& refused : kDevices) {
      if (type.starts_with(refused.prefix)) return unsafe(refused.why);
    }
    return {};
  }

  Status check_net(std::string_view option, const std::string& type) const {
    if (type == "none" && option != "-netdev") return {};
    if (origin_ == ArgumentsOf::extra) {
      return unsafe("its packets would not be held back; declare network cards in the definition");
    }
    if (option == "-netdev" && type == "stream") return {};
    return unsafe("its packets would not be held back; connect the card with '-netdev stream'");
  }

  ArgumentsOf origin_;
  const std::string& field_;
  std::string where_;
};

}  // namespace

Status check_arguments(const std::vector<std::string>& arguments, ArgumentsOf origin,
                       const std::string& field) {
  Checker checker(origin, field);
  const size_t first = origin == ArgumentsOf::attached ? 1 : 0;
  for (size_t i = first; i < arguments.size(); ++i) {
    const std::string_view option = normalized(arguments[i]);
    if (!option.starts_with('-')) {
      // A bare word that is no option's value is QEMU's way of naming a disk image.
      const bool value_of_option =
          i > first && arguments[i - 1].starts_with('-') && !contains(kFlags, normalized(arguments[i - 1]));
      if (value_of_option) continue;
      return {Code::unsafe,
              field + "[" + std::to_string(i) + "]: '" + arguments[i].substr(0, 64) +
                  "' cannot be protected: it belongs to no option, so QEMU takes it for a disk"};
    }
    static const std::string kNone;
    REMUSD_TRY(checker.check(i, option, i + 1 < arguments.size() ? arguments[i + 1] : kNone));
  }
  return {};
}

}  // namespace remusd::guest
