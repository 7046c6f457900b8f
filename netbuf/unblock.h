// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// QEMU 7.2 leaves the connections that its stream netdev accepts blocking. When we stop reading one, at the
// bound of the packet buffer, all of QEMU would wait in its next write, monitors included: no epoch could end
// any more, and nothing would be read again. Non-blocking, its netdev queues and the guest's own transmit
// queue stops.
#pragma once

#include <string>

#include "ckpt/status.h"

namespace remusd::netbuf {

/// Makes the other end of `socket`, a connected unix socket, non-blocking when another process has accepted
/// it at `path`. That flag belongs to the open socket and not to a descriptor, so it is set through a copy.
/// Needs the right to trace that process. `unavailable`: it has not accepted yet.
Status unblock_peer(int socket, const std::string& path);

}  // namespace remusd::netbuf
