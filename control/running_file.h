// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// NAME.pid in the runtime directory: which hypervisor process runs a guest, so that a daemon that was
// restarted does not start a second one beside it.
#pragma once

#include <string>

#include "ckpt/status.h"

namespace remusd::control {

/// `unsafe` when the process that the file names still runs.
Status check_not_running(const std::string& runtime_dir, const std::string& vm);
/// Best effort; a pid of 0 (no process) is not written.
void remember_running(const std::string& runtime_dir, const std::string& vm, int pid);
void forget_running(const std::string& runtime_dir, const std::string& vm);

}  // namespace remusd::control
