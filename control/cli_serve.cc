// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "control/cli.h"
#include "control/config.h"
#include "control/daemon.h"
#include "control/log.h"
#include "control/peer_tls.h"

namespace remusd::control {
namespace {

int serve(const std::string& path, const std::string& level, bool insecure, bool dry_run) {
  if (Status set = set_log_level(level); !set.ok()) return tell_failure(set);
  auto config = load_config(path);
  if (!config.ok()) {
    tell_failure(config.status());
    return kUsage;  // also for a file that is not there: no guest is missing
  }
  config->insecure = config->insecure || insecure;
  if (dry_run) {
    if (const auto tls = PeerTls::open(*config); !tls.ok()) {
      tell_failure(tls.status());
      return kFailed;
    }
    std::printf("%s is valid: node %s would serve on %s\n", path.c_str(), config->node.c_str(),
                config->api.c_str());
    return kDone;
  }
  auto daemon = Daemon::open(*std::move(config));
  if (!daemon.ok()) {
    tell_failure(daemon.status());
    return kFailed;
  }
  (*daemon)->run();
  return kDone;
}

}  // namespace

void add_serve(CLI::App& app, CliContext& context) {
  struct Flags {
    std::string config = kDefaultConfig, level = "info";
    bool insecure = false, dry_run = false;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* verb = add_verb(app, "serve", "Run the daemon until SIGTERM",
                            "remusd serve --config /etc/remusd/remusd.toml --log-level info");
  verb->add_option("--config", flags->config, "Configuration file; conf.d/*.toml beside it is read too")
      ->capture_default_str();
  verb->add_option("--log-level", flags->level, "debug, info, warn or error")->capture_default_str();
  verb->add_flag("--insecure", flags->insecure, "Speak to other nodes in plain text, without keys");
  verb->add_flag("--dry-run", flags->dry_run, "Only check the configuration");
  verb->callback([flags, &context] {
    context.action = [flags] { return serve(flags->config, flags->level, flags->insecure, flags->dry_run); };
  });
}

}  // namespace remusd::control
