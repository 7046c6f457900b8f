// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// One argument of QEMU's command line: "first,key=value,flag" with ",," for a comma, or a JSON object whose
// nested members get dotted keys. Pure.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ckpt/status.h"

namespace remusd::guest::qemu {

class OptionList {
 public:
  /// `first` is the key of a leading value that has none ("type", "driver", "qom-type").
  static Result<OptionList> parse(std::string_view text, std::string_view first);

  /// The last value of a key; empty when it is absent. A flag without a value is "on".
  std::string get(std::string_view key) const;
  void set(std::string_view key, std::string value);
  void remove(std::string_view key);
  /// In the "key=value" form, the key `first` leading without its name.
  std::string text(std::string_view first) const;

 private:
  std::vector<std::pair<std::string, std::string>> pairs_;
};

/// A value with its commas doubled.
std::string escape_commas(std::string_view value);

}  // namespace remusd::guest::qemu
