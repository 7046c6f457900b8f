// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a QEMU is, asked over QMP: the facts for the gate, and where its RAM is.
#pragma once

#include <string>

#include "guest/facts.h"
#include "guest/qemu/qmp.h"

namespace remusd::guest::qemu {

struct Probe {
  Facts facts;
  std::string ram_block;  // name of the RAM block that is the guest's whole RAM
  std::string mem_path;   // of a file backend; empty for a memfd
};

/// Fails with `unsafe` when the guest cannot be protected (RAM not shared, a device with memory of its own),
/// `unsupported` when QEMU lacks a command that is needed, `corrupt` when its answers make no sense.
Result<Probe> probe(Qmp* qmp);

}  // namespace remusd::guest::qemu
