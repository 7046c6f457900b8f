// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Words of the command line and of files: durations, names, addresses, URLs.
#include <cmath>

#include "arbiter/etcd_endpoint.h"
#include "control/duration.h"
#include "control/toml_reader.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

constexpr size_t kMaxUrlBytes = 300;  // etcd_endpoint.cc

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
  if (const auto endpoint = arbiter::parse_etcd_endpoint(text); endpoint.ok()) {
    REMUSD_ASSERT(endpoint->url == text && endpoint->tls == text.starts_with("https://"),
                  "an URL says whether it is encrypted");
    REMUSD_ASSERT(!endpoint->host.empty() && endpoint->port > 0, "an URL has a host and a port");
    const std::string named = "http://" + endpoint->host_header;  // with the port: perhaps too long by that
    const auto again = arbiter::parse_etcd_endpoint(named);
    REMUSD_ASSERT(named.size() > kMaxUrlBytes ||
                      (again.ok() && again->host == endpoint->host && again->port == endpoint->port &&
                       again->host_header == endpoint->host_header && again->address == endpoint->address),
                  "the host's name in requests leads to the same place");
  } else {
    require_reason(endpoint.status());
  }
}

void seeds(Seeds* out) {
  for (const char* text :
       {"25ms", "1.5s", "500us", "2m", "1e8m", "0x1p3s", "a.b-c_0", "[::1]:9471", "h:65535",
        "https://etcd-1.example:12379/", "http://[fd00::1%2]", "http://10.0.0.1:2379"})
    out->add_text(text);
  out->words = {"ms", "us", "1e9", "nan", "inf", "999999999.9", "m", ":0", "]:", "http://", "https://"};
}

REMUSD_FUZZ_TARGET(values, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
