// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The verb keys: needs no daemon.
#include <cinttypes>
#include <cstdio>

#include "control/cli.h"
#include "control/guest_status.h"
#include "control/keys.h"

namespace remusd::control {
namespace {

constexpr int kMostDays = 36500;

int tell_written(const CliContext& context, const Result<std::vector<std::string>>& written,
                 const std::string& next) {
  if (!written.ok()) return tell_failure(written.status());
  if (context.json) {
    print_json({{"schema_version", kSchemaVersion}, {"files", *written}});
    return kDone;
  }
  for (const std::string& path : *written) std::printf("%s\n", path.c_str());
  if (!next.empty()) std::printf("%s\n", next.c_str());
  return kDone;
}

int show(const CliContext& context, const std::string& dir, const std::vector<std::string>& files) {
  const auto entries = list_certificates(dir, files);
  if (!entries.ok()) return tell_failure(entries.status());
  nlohmann::json certificates = nlohmann::json::array();
  for (const CertificateEntry& entry : *entries) {
    const ckpt::CertificateFacts& facts = entry.facts;
    const std::string from = ckpt::format_utc(facts.validity.not_before);
    const std::string to = ckpt::format_utc(facts.validity.not_after);
    if (context.json) {
      certificates.push_back({{"file", entry.file},
                              {"subject", facts.subject},
                              {"node", facts.node},
                              {"issuer", facts.issuer},
                              {"authority", facts.authority},
                              {"sha256", facts.sha256},
                              {"not_before", from},
                              {"not_after", to},
                              {"days_left", entry.days_left}});
      continue;
    }
    std::printf("%s\n", entry.file.c_str());
    std::printf("  subject      %s%s\n", facts.subject.c_str(), facts.authority ? " (authority)" : "");
    if (!facts.node.empty()) std::printf("  node         %s\n", facts.node.c_str());
    std::printf("  issuer       %s\n", facts.issuer.c_str());
    std::printf("  valid        %s to %s, %" PRId64 " days left%s\n", from.c_str(), to.c_str(),
                entry.days_left, entry.days_left < 0 ? ": EXPIRED" : "");
    std::printf("  fingerprint  SHA-256 %s\n", facts.sha256.c_str());
  }
  if (context.json) print_json({{"schema_version", kSchemaVersion}, {"certificates", certificates}});
  return kDone;
}

struct KeyFlags {
  std::string dir = kDefaultKeysDir, node, out;
  std::vector<std::string> files;
  int days = kNodeDays;
};

}  // namespace

void add_keys(CLI::App& app, CliContext& context) {
  const auto flags = std::make_shared<KeyFlags>();
  CLI::App* keys = add_verb(app, "keys", "Make and show the certificates by which nodes know each other",
                            "remusd keys init && remusd keys issue b --out /root/keys-of-b");
  keys->require_subcommand(1);
  const auto add_dir = [flags](CLI::App* verb) {
    verb->add_option("--dir", flags->dir, "Where the authority is")->capture_default_str();
  };

  CLI::App* init = add_verb(*keys, "init", "Make an authority: ca.crt and ca.key, for 10 years",
                            "remusd keys init --dir /root/remusd-ca");
  add_dir(init);
  init->callback([flags, &context] {
    context.action = [flags, &context] {
      return tell_written(
          context, init_authority(flags->dir),
          "Keep ca.key safe: who has it can be any node. Next: remusd keys issue NODE --out DIR");
    };
  });

  CLI::App* issue = add_verb(*keys, "issue", "Make the key and the certificate of one node",
                             "remusd keys issue b --out /root/keys-of-b");
  issue->add_option("NODE", flags->node, "The node's name, as in its configuration")->required();
  issue->add_option("--days", flags->days, "How long it is valid")
      ->check(CLI::Range(1, kMostDays))
      ->capture_default_str();
  issue->add_option(
      "--out", flags->out,
      "Write ca.crt, node.crt and node.key there, to be carried to /etc/remusd/keys of that host");
  add_dir(issue);
  issue->callback([flags, &context] {
    context.action = [flags, &context] {
      return tell_written(context, issue_node(flags->dir, flags->node, flags->days, flags->out), "");
    };
  });

  CLI::App* list = add_verb(*keys, "show", "Show certificates: whose they are and how long they are valid",
                            "remusd keys show /etc/remusd/keys/node.crt --json");
  list->add_option("FILE", flags->files, "Certificates; none: all in the directory");
  add_dir(list);
  list->callback([flags, &context] {
    context.action = [flags, &context] { return show(context, flags->dir, flags->files); };
  });
}

}  // namespace remusd::control
