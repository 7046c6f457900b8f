// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The command line's side of the local API.
#pragma once

#include <string>

#include "ckpt/clock.h"
#include "control/exit_code.h"

namespace remusd::control {

class ApiClient {
 public:
  explicit ApiClient(std::string socket_path) : path_(std::move(socket_path)) {}

  /// One request on a connection of its own. Errors of the daemon come back as they were meant; no daemon
  /// at the socket is `unavailable`; no answer by `limit` is `timed_out`.
  Reply get(const std::string& target, Duration limit = std::chrono::seconds(10)) const;
  Reply post(const std::string& target, const nlohmann::json& body,
             Duration limit = std::chrono::seconds(120)) const;

 private:
  Reply call(const std::string& method, const std::string& target, const std::string& body,
             Duration limit) const;
  std::string path_;
};

}  // namespace remusd::control
