// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "control/http_server.h"

namespace remusd::control {

class Daemon;

/// The routes of the TCP endpoint, all of them read-only: /metrics, /livez, /readyz, and /vm/NAME/primary,
/// which is 200 where the guest runs and may be heard (for load balancers), 503 where it does not, 404 where
/// nobody knows it.
HttpHandler make_http_metrics(Daemon& daemon);

}  // namespace remusd::control
