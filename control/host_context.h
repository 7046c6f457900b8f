// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <functional>

#include "arbiter/arbiter.h"
#include "control/config.h"
#include "control/metrics.h"
#include "control/peer_tls.h"
#include "control/residue.h"

namespace remusd::control {

class GuestHost;

/// What all hosts share; outlives them.
struct HostContext {
  const Config& config;
  arbiter::Arbiter& arbiter;
  Metrics& metrics;
  Residues& residues;
  PeerTls& tls;
  boost::asio::any_io_executor pool;
  /// On the strand: this host retired, take it off the list.
  std::function<void(GuestHost&)> on_retired;
};

}  // namespace remusd::control
