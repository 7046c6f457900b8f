// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Words of the command line and of files: durations, names, addresses.
#include <cmath>

#include "control/duration.h"
#include "control/toml_reader.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

void run(View bytes) {
  const std::string text(text_of(bytes));
  if (const auto duration = control::parse_duration(text); duration.ok()) {
    REMUSD_ASSERT(duration->count() >= 0, "time does not run backwards");
    REMUSD_ASSERT(to_seconds(*duration) <= 1e9, "it is bounded");
    REMUSD_ASSERT(!control::format_duration(*duration).empty(), "it can be told");
  } else {
    require_reason(duration.status());
  }
  if (control::is_name(text)) {
    REMUSD_ASSERT(text.size() <= 32 && text.find('/') == std::string::npos && text[0] != '.',
                  "a name can be a file's");
  }
  if (control::is_address(text)) {
    const std::string port = text.substr(text.rfind(':') + 1);
    REMUSD_ASSERT(std::to_string(std::stoi(port)).size() <= port.size() && text.rfind(':') > 0,
                  "an address has a host and a port");
  }
}

void seeds(Seeds* out) {
  for (const char* text :
       {"25ms", "1.5s", "500us", "2m", "1e8m", "0x1p3s", "a.b-c_0", "[::1]:9471", "h:65535"})
    out->add_text(text);
  out->words = {"ms", "us", "1e9", "nan", "inf", "999999999.9", "m", ":0", "]:"};
}

REMUSD_FUZZ_TARGET(values, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
