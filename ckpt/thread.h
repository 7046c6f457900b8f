// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

namespace remusd {

/// `urgent`: while the thread waits for a processor the guest stands still, or its output waits, or a peer
/// may take this host for lost.
enum class Urgency { normal, urgent };

/// The first thing that a thread of ours does: takes its name (at most 15 characters) and its priority.
/// Urgent threads get a higher one and exact timers, as far as this process may have that (CAP_SYS_NICE); the
/// others the process's own, whoever made them.
void begin_thread(const char* name, Urgency urgency = Urgency::normal);

/// The nice value that this process was started with: for processes that it starts.
int own_nice();
/// That of urgent threads.
int urgent_nice();

}  // namespace remusd
