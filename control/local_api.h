// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include "control/http_server.h"

namespace remusd::control {

class Daemon;

/// The routes of the unix socket: GET /v1/guests, GET /v1/guests/NAME, POST /v1/guests/NAME/VERB. The daemon
/// must outlive the server. Errors: {"error":{"code":"unsafe","message":"..."}}.
HttpHandler make_local_api(Daemon& daemon);

}  // namespace remusd::control
