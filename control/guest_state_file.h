// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// state_dir/guests/VM.json: the hypervisor process that this node has for a guest, and what an operator
// wanted of it, for the daemon that comes after this one. Durable, and replaced whole.
//
// The process is known by its number, its start time and the boot of the host, so that a later process with
// the same number is never taken for it.
#pragma once

#include <string>
#include <vector>

#include "ckpt/status.h"
#include "guest/definition.h"
#include "primary/pacer.h"

namespace remusd::control {

struct GuestState {
  std::string vm;
  bool standby = false;          // it waits for a promotion; the rest but the process is empty then
  guest::Definition definition;  // of the guest, as it runs here
  bool launched = true;          // by a daemon of this node, not by somebody else ([attach])
  int pid = 0;
  std::string started, boot_id;  // of the process, of the host
  bool wanted = false;           // it was protected, or to be protected again, by `peer` at `pace`
  std::string peer;
  primary::PaceOptions pace;

  bool operator==(const GuestState&) const = default;
};

/// Fills what identifies process `pid`.
void identify(int pid, GuestState* state);
/// That very process still runs.
bool lives(const GuestState& state);
/// Ends it, and waits until it is gone. Harmless when it is.
Status end_process(const GuestState& state);

Status save_guest_state(const std::string& state_dir, const GuestState& state);
/// Best effort.
void forget_guest_state(const std::string& state_dir, const std::string& vm);
/// `not_found` when there is none; `corrupt` names file and field.
Result<GuestState> load_guest_state(const std::string& state_dir, const std::string& vm);
/// Names of guests that have a file, sorted; at most `limit`.
std::vector<std::string> saved_guests(const std::string& state_dir, size_t limit);

}  // namespace remusd::control
