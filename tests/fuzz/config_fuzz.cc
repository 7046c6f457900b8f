// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The daemon's configuration, and with another first byte a guest's file.
#include "control/config.h"
#include "control/guest_file.h"
#include "control/toml_reader.h"
#include "tests/fuzz/scratch.h"

namespace remusd::fuzz {
namespace {

/// Complaints begin with "file:line: "; the file is there, so a line is to blame.
void require_place(const Status& status, const std::string& path) {
  require_reason(status);
  REMUSD_ASSERT(status.message().starts_with(path + ":"), "a complaint names the file and the line");
  const char digit = status.message()[path.size() + 1];
  REMUSD_ASSERT(digit >= '1' && digit <= '9', "lines are counted from 1");
}

void run_config(const std::string& path) {
  const auto config = control::load_config(path);
  if (!config.ok()) return require_place(config.status(), path);
  REMUSD_ASSERT(control::is_name(config->node) && config->peers.count(config->node) == 0,
                "a node has a name");
  REMUSD_ASSERT(config->epoch_ms >= control::kEpochMinMs && config->epoch_ms <= control::kEpochMaxMs &&
                    config->heartbeat_ms >= 1 && config->heartbeat_lost >= 2 && config->staging_mib >= 8 &&
                    config->packet_buffer_mib >= 1 && config->arbiter_timeout_ms >= 10,
                "numbers are within their bounds");
  REMUSD_ASSERT(config->api.front() == '/' && config->api.size() <= 107 && config->state_dir.front() == '/',
                "paths are absolute");
  for (const auto& [name, address] : config->peers) {
    REMUSD_ASSERT(control::is_name(name) && control::is_address(address), "peers can be reached");
  }
}

void run_guest(const std::string& path) {
  const auto guest = control::load_guest_file(path);
  if (!guest.ok()) return require_place(guest.status(), path);
  guest::Definition twice = *guest;
  REMUSD_ASSERT(guest::complete_and_validate(&twice).ok() && twice == *guest,
                "a guest that is read is valid");
  const auto sent = guest::definition_from_json(guest::to_json(*guest));
  REMUSD_ASSERT(sent.ok() && *sent == *guest, "the peer gets the same definition");
}

void run(View bytes) {
  static const MemoryFile file;
  Input input(bytes);
  const bool guest = input.number() % 2 == 1;
  file.replace(input.rest());
  guest ? run_guest(file.path()) : run_config(file.path());
}

void seeds(Seeds* out) {
  // After '\n' (10) a configuration follows, after '\r' (13) a guest.
  out->add_text(R"(
node = "a"
listen = "[::]:9471"
metrics = ""
[arbiter]
kind = "file"
directory = "/srv/arbiter"
[peer.b]
address = "b.example:9471"
[protection]
epoch_ms = 25
precopy = true
tracker = "async"
[qemu]
qmp_timeout_ms = 5000
)");
  out->add_text("\n# none\nnode = 'x'\npeer = { b = { address = 'h:1' } }\nprotection.staging_mib = 0x10\n");
  out->add_text(
      "\r\nname = \"g\"\ndriver = \"sim\"\nmemory_mib = 4\n[[nic]]\nbridge = \"br0\"\n[sim]\nseed = 7\n");
  out->add_text(
      "\r\nname = \"g\"\naccelerator = \"tcg\"\nkernel = \"/k\"\nappend = \"a=b\"\n"
      "extra_args = [\"-device\", \"virtio-rng-pci\"]\n");
  out->words = {"node",
                "listen",
                "api",
                "metrics",
                "[arbiter]",
                "[peer.",
                "[protection]",
                "[qemu]",
                "name",
                "driver",
                "[[nic]]",
                "[sim]",
                "[attach]",
                "qmp = ",
                "'''",
                "\"\"\"",
                "0x",
                "inf",
                "1979-05-27T07:32:00Z",
                "\\u00e9",
                "= [",
                "= {",
                "epoch_ms = "};
}

REMUSD_FUZZ_TARGET(config, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
