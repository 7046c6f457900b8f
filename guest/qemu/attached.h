// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A QEMU that somebody else started: what its command line says, whether it can be protected, and the command
// line of the standby that can take its place. Pure.
#pragma once

#include <string>
#include <vector>

#include "ckpt/status.h"
#include "guest/definition.h"
#include "guest/guest.h"
#include "guest/qemu/command.h"

namespace remusd::guest::qemu {

/// Fills the definition from the command line of the process: attach_command, memory_mib and vcpus where they
/// are plain, kernel, initrd and append, and the cards (their bridge and TAP stay as the operator gave them).
/// Relative paths are taken from `directory`, the process's own. Refuses with `unsafe` or `unsupported` what
/// cannot be protected, and says which option to change.
Status describe_command(const std::vector<std::string>& argv, const std::string& directory,
                        Definition* definition);

/// The cards of an attached guest with the sockets at which its own process listens.
Result<std::vector<NicEndpoint>> attached_nics(const Definition& definition);

/// The standby's command line: definition.attach_command with this host's sockets, boot files and RAM.
/// `nics` name the standby's own sockets, in the order of attached_nics().
Result<std::vector<std::string>> standby_command(const Definition& definition, const DriverOptions& options,
                                                 const std::vector<NicEndpoint>& nics);

}  // namespace remusd::guest::qemu
