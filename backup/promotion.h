// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// From a standby with a committed image to a guest that runs and is heard.
#pragma once

#include <memory>

#include "backup/session.h"
#include "backup/store.h"
#include "guest/guest.h"
#include "netbuf/net_buffer.h"

namespace remusd::backup {

/// The network side: TAPs on their bridges and the gate, passing. May be done before the guest runs: QEMU's
/// sockets listen already, so that its very first frame has somewhere to go.
Result<std::unique_ptr<netbuf::NetBuffer>> connect_network(const std::vector<guest::NicEndpoint>& endpoints,
                                                           const netbuf::NetOptions& options,
                                                           const std::string& vm);

struct Promotion {
  std::unique_ptr<guest::Guest> guest;
  std::unique_ptr<netbuf::NetBuffer> net;  // never null; without NICs when network is not ok
  Status network;  // the guest runs without its network, and why: its memory is worth more than its wires
};

/// REQUIRES: the right to run was won, !store.pending(). Spends the standby. A failure means that the guest
/// does not run here; the standby can only be destroyed.
Result<Promotion> promote(guest::Standby& standby, const Store& store, const netbuf::NetOptions& options,
                          const std::string& vm);

}  // namespace remusd::backup
