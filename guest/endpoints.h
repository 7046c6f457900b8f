// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Where a guest's cards and disks are met: the sockets between the hypervisor and those who hold back what
// the guest does.
#pragma once

#include <string>
#include <vector>

namespace remusd::guest {

/// One network card, as the guest's side sees it.
struct NicEndpoint {
  std::string id;           // "net0"
  std::string mac;          // "52:54:00:12:34:56"
  std::string socket_path;  // QEMU listens here (stream netdev, server=on); frames are be32 length + bytes
  std::string bridge;       // bridge to plug the TAP into; empty: none
  std::string tap;          // TAP name; at most 15 characters
};

/// One disk. QEMU connects when it starts and stays connected: whoever serves the disk must listen before
/// start() or prepare().
struct DiskEndpoint {
  std::string name;         // "disk0"
  std::string socket_path;  // NBD, newstyle, export ""
  std::string path;         // on this host: what is to be served
  bool read_only = false;
};

/// What a guest without disks has.
const std::vector<DiskEndpoint>& no_disks();

}  // namespace remusd::guest
