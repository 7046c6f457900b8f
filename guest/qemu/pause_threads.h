// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

namespace remusd::guest::qemu {

/// Those threads of a QEMU process that carry out a pause: its main loop and its monitors'.
std::vector<int> pause_threads(int pid);
/// That of its first vCPU, or 0.
int vcpu_thread(int pid);

}  // namespace remusd::guest::qemu
