// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/config.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "arbiter/etcd_endpoint.h"
#include "control/toml_reader.h"

namespace remusd::control {
namespace {

constexpr size_t kMaxPeers = 64;
constexpr size_t kMaxUnixPath = 107;  // sun_path

TomlField path_field(std::string key, std::string* out) {
  return checked_text_field(
      std::move(key), "an absolute path",
      [](const std::string& text) { return !text.empty() && text[0] == '/'; }, out);
}

TomlField optional_path_field(std::string key, std::string* out) {
  return checked_text_field(
      std::move(key), "an absolute path, or \"\" for none",
      [](const std::string& text) { return text.empty() || text[0] == '/'; }, out);
}

TomlField address_field(std::string key, std::string* out) {
  return checked_text_field(
      std::move(key), "\"host:port\", or \"\" for none",
      [](const std::string& text) { return text.empty() || is_address(text); }, out);
}

TomlField fence_options_field(std::string key, std::map<std::string, std::string>* out) {
  return {std::move(key), "a table of texts, integers and booleans", [out](const toml::node& node) -> Status {
            const toml::table* table = node.as_table();
            if (table == nullptr) return {Code::invalid, ""};
            out->clear();
            for (const auto& [name, value] : *table) {
              std::string& text = (*out)[std::string(name.str())];
              if (const auto string = value.value_exact<std::string>()) {
                text = *string;
              } else if (const auto number = value.value_exact<int64_t>()) {
                text = std::to_string(*number);
              } else if (const auto flag = value.value_exact<bool>()) {
                text = *flag ? "1" : "0";
              } else {
                return {Code::invalid, ""};
              }
              // A line of its own each: nothing else may come in with it.
              if (text.find('\n') != std::string::npos) return {Code::invalid, ""};
            }
            return {};
          }};
}

Status read_peers(const toml::table& table, Config* config) {
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (!is_name(name)) {
      return {Code::invalid, where(node) + ": peer name '" + name + "' must be " + kNameRule};
    }
    const toml::table* peer = node.as_table();
    if (peer == nullptr) {
      return {Code::invalid, where(node) + ": 'peer." + name + "' must be a table with the key address"};
    }
    std::string address = config->peers[name];
    FenceAgent fence = config->fences[name];
    REMUSD_TRY(read_fields(
        *peer, "peer." + name + ".",
        {checked_text_field("address", "\"host:port\"", is_address, &address),
         path_field("fence", &fence.command), fence_options_field("fence_options", &fence.options),
         integer_field("fence_timeout_ms", 100, 3600000, &fence.timeout_ms)}));
    if (address.empty()) {
      return {Code::invalid,
              where(node) + ": 'peer." + name + ".address' is missing; it must be \"host:port\""};
    }
    config->peers[name] = address;
    config->fences[name] = fence;
    if (config->peers.size() > kMaxPeers) {
      return {Code::invalid, where(node) + ": more than " + std::to_string(kMaxPeers) + " peers"};
    }
  }
  return {};
}

bool is_etcd_endpoint(const std::string& text) {
  return arbiter::parse_etcd_endpoint(text).ok();
}

// What the arbiter's keys must be together, once all files have been read. `blamed` is "file:line".
Status check_arbiter(const Config& config, const std::string& blamed) {
  if (config.arbiter_kind != "etcd") return {};
  const arbiter::EtcdOptions& etcd = config.etcd;
  if (etcd.endpoints.empty() || etcd.endpoints.size() > arbiter::kMaxEtcdEndpoints) {
    return {Code::invalid, blamed + ": 'arbiter.endpoints' must name from 1 to " +
                               std::to_string(arbiter::kMaxEtcdEndpoints) +
                               " endpoints when 'arbiter.kind' is \"etcd\""};
  }
  if (etcd.cert.empty() != etcd.key.empty()) {
    const std::string missing = etcd.cert.empty() ? "cert" : "key";
    return {Code::invalid,
            blamed + ": 'arbiter." + missing + "' is missing; a certificate and its key go together"};
  }
  return {};
}

// `arbiter_at` becomes the place of the last [arbiter] table, for what is wrong with it as a whole.
Status read_file(const std::string& path, Config* config, std::string* arbiter_at) {
  REMUSD_ASSIGN(const toml::table root, parse_toml(path));
  const auto arbiter = [&](const toml::table& table) {
    const toml::node* kind = table.get("kind");
    *arbiter_at = where(kind != nullptr ? *kind : table);
    return read_fields(
        table, "arbiter.",
        {choice_field("kind", {"file", "etcd"}, &config->arbiter_kind),
         path_field("directory", &config->arbiter_directory),
         checked_text_list_field("endpoints", arbiter::kEtcdEndpointRule, is_etcd_endpoint,
                                 &config->etcd.endpoints),
         optional_path_field("ca", &config->etcd.ca), optional_path_field("cert", &config->etcd.cert),
         optional_path_field("key", &config->etcd.key)});
  };
  const auto tls = [&](const toml::table& table) {
    return read_fields(table, "tls.",
                       {path_field("ca", &config->tls_ca), path_field("cert", &config->tls_cert),
                        path_field("key", &config->tls_key), bool_field("insecure", &config->insecure)});
  };
  const auto protection = [&](const toml::table& table) {
    return read_fields(table, "protection.",
                       {integer_field("epoch_ms", kEpochMinMs, kEpochMaxMs, &config->epoch_ms),
                        integer_field("latency_target_ms", 0, kEpochMaxMs, &config->latency_target_ms),
                        integer_field("epoch_min_ms", 1, kEpochMaxMs, &config->epoch_min_ms),
                        integer_field("max_slowdown_percent", 0, 90, &config->max_slowdown_percent),
                        bool_field("precopy", &config->precopy),
                        integer_field("heartbeat_ms", 1, 10000, &config->heartbeat_ms),
                        integer_field("heartbeat_lost", 2, 1000, &config->heartbeat_lost),
                        integer_field("staging_mib", 8, 65536, &config->staging_mib),
                        integer_field("shadow_mib", 0, 1048576, &config->shadow_mib),
                        integer_field("packet_buffer_mib", 1, 65536, &config->packet_buffer_mib),
                        integer_field("disk_buffer_mib", 8, 65536, &config->disk_buffer_mib),
                        integer_field("disk_sync_mib_s", 0, 1048576, &config->disk_sync_mib_s),
                        integer_field("residue_s", 0, 86400, &config->residue_s),
                        choice_field("tracker", {"auto", "async", "sync"}, &config->tracker),
                        integer_field("arbiter_timeout_ms", 10, 600000, &config->arbiter_timeout_ms),
                        integer_field("ack_timeout_ms", 100, 600000, &config->ack_timeout_ms),
                        choice_field("when_slow", {"stretch", "unprotect"}, &config->when_slow),
                        integer_field("slow_after_ms", 100, 600000, &config->slow_after_ms),
                        integer_field("slow_bound_ms", 10, 60000, &config->slow_bound_ms),
                        bool_field("hold_without_fence", &config->hold_without_fence),
                        bool_field("reprotect", &config->reprotect),
                        integer_field("reprotect_min_ms", 10, 600000, &config->reprotect_min_ms),
                        integer_field("reprotect_max_ms", 10, 3600000, &config->reprotect_max_ms),
                        text_field("record_path", &config->record_path)});
  };
  const auto qemu = [&](const toml::table& table) {
    return read_fields(table, "qemu.",
                       {text_field("binary", &config->qemu_binary),
                        integer_field("qmp_timeout_ms", 100, 600000, &config->qmp_timeout_ms)});
  };
  return read_fields(
      root, "",
      {checked_text_field("node", kNameRule, is_name, &config->node),
       address_field("listen", &config->listen),
       checked_text_field(
           "api", "an absolute path of at most 107 bytes",
           [](const std::string& text) {
             return !text.empty() && text[0] == '/' && text.size() <= kMaxUnixPath;
           },
           &config->api),
       address_field("metrics", &config->metrics), path_field("state_dir", &config->state_dir),
       path_field("runtime_dir", &config->runtime_dir), path_field("guests_dir", &config->guests_dir),
       table_field("arbiter", arbiter),
       table_field("peer", [&](const toml::table& table) { return read_peers(table, config); }),
       table_field("tls", tls), table_field("protection", protection), table_field("qemu", qemu)});
}

}  // namespace

Result<Config> load_config(const std::string& path) {
  Config config;
  std::string arbiter_at = path + ":1";
  REMUSD_TRY(read_file(path, &config, &arbiter_at));
  const std::filesystem::path extra = std::filesystem::path(path).parent_path() / "conf.d";
  std::vector<std::string> files;
  std::error_code ignored;  // No conf.d is as good as an empty one.
  for (const auto& entry : std::filesystem::directory_iterator(extra, ignored)) {
    if (entry.path().extension() == ".toml") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  for (const std::string& file : files) REMUSD_TRY(read_file(file, &config, &arbiter_at));
  REMUSD_TRY(check_arbiter(config, arbiter_at));
  if (config.node.empty()) {
    return Status(Code::invalid, path +
                                     ":1: 'node' is missing; it names this host to its peers and must be " +
                                     std::string(kNameRule));
  }
  if (config.peers.count(config.node) != 0) {
    return Status(Code::invalid,
                  path + ":1: 'peer." + config.node + "' is this node itself; name other nodes only");
  }
  return config;
}

}  // namespace remusd::control
