// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Reads QEMU command-line arguments as far as is needed to refuse what cannot be protected: devices whose
// state or memory is outside QEMU, output that would not be held back, and options that remusd sets itself.
#pragma once

#include <string>
#include <vector>

#include "ckpt/status.h"

namespace remusd::guest {

enum class ArgumentsOf {
  extra,     // a definition's extra_args: options that remusd sets itself are refused, too
  attached,  // the command line of a QEMU that somebody else started; element 0 is the program
};

/// Names the element and the reason: `unsafe` for what cannot be protected, `invalid` for what is remusd's
/// to set. `field` is the name used in messages.
Status check_arguments(const std::vector<std::string>& arguments, ArgumentsOf origin,
                       const std::string& field);

}  // namespace remusd::guest
