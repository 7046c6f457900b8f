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

/// TAPs that are plugged in nowhere yet, and the gate between them and the standby's sockets, which listen
/// already. To be done while the arbiter is asked: making a TAP takes 0.4 ms, but tens of them when the
/// kernel is busy with other interfaces, such as those of a host that has just died on the same machine.
Result<std::unique_ptr<netbuf::NetBuffer>> connect_network(const std::vector<guest::NicEndpoint>& endpoints,
                                                           const netbuf::NetOptions& options,
                                                           const std::string& vm);

struct Promotion {
  std::unique_ptr<guest::Guest> guest;
  std::unique_ptr<netbuf::NetBuffer> net;  // never null; without NICs when network is not ok
  Status network;  // the guest runs without its network, and why: its memory is worth more than its wires
};

/// REQUIRES: the right to run was won, !store.pending(). Plugs the network in, so that the guest's first
/// frame has somewhere to go, and spends the standby. `net`: from connect_network(), or null when that
/// failed: it is tried again. A failure means that the guest does not run here; the standby can only be
/// destroyed.
Result<Promotion> promote(guest::Standby& standby, const Store& store, std::unique_ptr<netbuf::NetBuffer> net,
                          const netbuf::NetOptions& options, const std::string& vm);

}  // namespace remusd::backup
