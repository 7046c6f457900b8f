// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// An external fence agent, by the calling convention of the fence agents of cluster software: options as
// NAME=VALUE lines on its standard input, exit code 0 means that the host is off.
#pragma once

#include <map>
#include <stop_token>
#include <string>

#include "ckpt/clock.h"
#include "ckpt/status.h"

namespace remusd::control {

struct FenceAgent {
  std::string command;                         // an absolute path; empty: the peer is not fenced
  std::map<std::string, std::string> options;  // "action" is "off" unless it is given
  int timeout_ms = 60000;
};

/// Runs the agent and waits for it: ok only when it exited with 0 within its time. One that takes longer, or
/// when `stop` is asked for, is killed with all that it started; that and everything else is a failure that
/// names the agent and its last words. Any thread.
Status run_fence_agent(const FenceAgent& agent, const std::string& peer, const std::stop_token& stop);

}  // namespace remusd::control
