// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// From a standby with a committed image to a guest that runs and is heard. Two ways lead there:
//
//   unplanned    connect() while the arbiter is asked, then run(), which loads and runs in one
//   switchover   load() before the arbiter is asked: all that can fail; then run(), which only lets it run
#pragma once

#include <memory>
#include <string>

#include "backup/session.h"
#include "backup/store.h"
#include "guest/guest.h"
#include "netbuf/net_buffer.h"

namespace remusd::backup {

class Promotion {
 public:
  struct Running {
    std::unique_ptr<guest::Guest> guest;
    std::unique_ptr<netbuf::NetBuffer> net;  // never null; without NICs when network is not ok
    Status network;  // the guest runs without its network, and why: its memory is worth more than its wires
  };

  explicit Promotion(netbuf::NetOptions options) : options_(options) {}

  /// TAPs that are plugged in nowhere yet, and the gate between them and the standby's sockets, which listen
  /// already. Making a TAP takes 0.4 ms, but tens of them when the kernel is busy with other interfaces, such
  /// as those of a host that has just died on the same machine. Best effort: run() tries again.
  void connect(guest::Standby& standby, const std::string& vm);
  /// The standby has its device state and stands, its network is plugged in. REQUIRES: !store.pending(). A
  /// guest that could not have its network here is better off where it is, so that is a failure, too. After
  /// one the standby can only be destroyed.
  Status load(guest::Standby& standby, const Store& store, const std::string& vm);
  /// The network is plugged in before the guest runs: its first frame has somewhere to go. Spends the
  /// standby. REQUIRES: the right to run was won, !store.pending(). A failure means that the guest does not
  /// run here; the standby can only be destroyed.
  Result<Running> run(guest::Standby& standby, const Store& store, const std::string& vm);
  /// Unplugs what was connected.
  void drop() { net_.reset(); }

 private:
  const netbuf::NetOptions options_;
  std::unique_ptr<netbuf::NetBuffer> net_;
  bool loaded_ = false;
};

}  // namespace remusd::backup
