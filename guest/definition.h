// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest's definition: what its TOML file says, validated. It travels to the peer as JSON (DEFINITION
// record), so that the peer needs no file of its own.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/status.h"

namespace remusd::guest {

/// Models of devices. Those that end in kLegacy are the same device in virtio's legacy form alone (as before
/// virtio 1.0): a modern one saves 1,024 queues in each pause, used or not.
inline constexpr std::string_view kLegacy = "-legacy";
inline constexpr std::array<std::string_view, 3> kNicModels{"virtio-net-pci", "virtio-net-pci-legacy",
                                                            "e1000"};
inline constexpr std::array<std::string_view, 2> kDiskModels{"virtio-blk-pci", "virtio-blk-pci-legacy"};

struct NicDefinition {
  std::string model = "virtio-net-pci";  // or one of kNicModels
  std::string mac;                       // given, or derived from the guest's name: never random
  std::string bridge;                    // on each host; empty: the TAP is left unplugged
  std::string tap;                       // default: derived from the guest's name and the index

  bool operator==(const NicDefinition&) const = default;
};

/// replicate: kept on both hosts. hold: on storage that both hosts see; its writes are held back like
/// packets.
struct DiskDefinition {
  static constexpr std::string_view kReplicate = "replicate", kHold = "hold";

  std::string name;         // [a-z][a-z0-9-]{0,15}; default: "disk" and its number
  std::string path;         // on this host: a raw file or a block device, absolute
  std::string backup_path;  // on the peer; default: the same path
  bool read_only = false;
  std::string model = "virtio-blk-pci";  // or one of kDiskModels
  uint64_t bytes = 0;                    // set by the host where the guest runs, for its peer; 0: not known
  std::string mode{kReplicate};

  bool held() const { return mode == kHold; }
  bool operator==(const DiskDefinition&) const = default;
};

struct SimDefinition {
  uint64_t seed = 1;
  uint32_t dirty_pages_per_ms = 8;

  bool operator==(const SimDefinition&) const = default;
};

struct Definition {
  std::string name;                 // [a-z0-9][a-z0-9._-]{0,31}
  std::string driver = "qemu";      // or "sim"
  std::string machine = "pc";       // "pc", "q35" or a versioned name
  std::string accelerator = "kvm";  // "kvm", "tcg"
  std::string cpu;                  // -cpu; empty: QEMU's default of the machine
  uint32_t vcpus = 1;
  uint64_t memory_mib = 256;
  std::string kernel, initrd, append;  // direct kernel boot; empty: firmware boot
  std::string serial_log;              // file for the serial console, on whichever host runs it; empty: none
  std::vector<NicDefinition> nics;
  std::vector<DiskDefinition> disks;
  std::vector<std::string> extra_args;  // appended to QEMU's command line on both sides
  std::string attach_qmp;  // attach to a QEMU already running: its QMP socket; empty: we start it
  std::vector<std::string> attach_command;  // its command line, read from the process, for the standby
  SimDefinition sim;

  bool operator==(const Definition&) const = default;
};

/// Fills what has a default that depends on other fields (MACs, TAP names, the disks' names and places), then
/// checks every field; the error names the field and the values allowed.
Status complete_and_validate(Definition* definition);
/// Some disk of it is held.
bool holds_disks(const Definition& definition);
/// The same guest as its other host defines it: each disk's two paths change places.
/// REQUIRES: complete_and_validate() has completed it.
Definition of_the_other_host(Definition definition);

std::string to_json(const Definition& definition);
/// Checks the form only: the caller goes on with complete_and_validate().
Result<Definition> definition_from_json(std::string_view text);

}  // namespace remusd::guest
