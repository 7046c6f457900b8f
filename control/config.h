// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The daemon's configuration: remusd.toml, then conf.d/*.toml beside it in the order of their names, each
// setting what it names. Everything but `node` has a default.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

#include "arbiter/arbiter.h"
#include "ckpt/clock.h"
#include "ckpt/status.h"
#include "control/fence.h"

namespace remusd::control {

inline constexpr int kEpochMinMs = 2;
inline constexpr int kEpochMaxMs = 1000;
inline constexpr double kEpochFloorMinMs = 0.5;
inline constexpr const char* kDefaultConfig = "/etc/remusd/remusd.toml";
inline constexpr const char* kDefaultApi = "/run/remusd/api.sock";

struct Config {
  std::string node;
  std::string listen;  // "host:port" for peers; empty: this node is nobody's backup
  std::string api = kDefaultApi;
  std::string metrics = "127.0.0.1:9470";  // empty: none
  std::string state_dir = "/var/lib/remusd";
  std::string runtime_dir = "/run/remusd";
  std::string guests_dir = "/etc/remusd/guests";
  std::string arbiter_kind = "file";
  std::string arbiter_directory = "/var/lib/remusd/arbiter";
  arbiter::EtcdOptions etcd;                 // for arbiter_kind "etcd"
  std::map<std::string, std::string> peers;  // name to "host:port"
  std::map<std::string, FenceAgent> fences;  // of those peers that have one
  std::string tls_ca = "/etc/remusd/keys/ca.crt";
  std::string tls_cert = "/etc/remusd/keys/node.crt";
  std::string tls_key = "/etc/remusd/keys/node.key";
  bool insecure = false;  // plain text between nodes

  int epoch_ms = 25;
  int latency_target_ms = 0;  // 0: none
  int epoch_min_ms = 2;
  int max_slowdown_percent = 0;  // 0: no bound
  bool precopy = true;
  int heartbeat_ms = 20;
  int heartbeat_lost = 5;
  int staging_mib = 128;
  int shadow_mib = 128;  // 0: no deltas
  int packet_buffer_mib = 64;
  int disk_buffer_mib = 64;  // changes of a guest's disks that wait for the backup, or there for its disks
  int disk_sync_mib_s = 0;   // a first sync's rate for disks; 0: no limit
  int residue_s = 600;       // how long a lost guest's or replica's memory is kept; 0: not at all
  std::string tracker = "auto";
  int arbiter_timeout_ms = 2000;
  int ack_timeout_ms = 10000;         // a backup that lives but acknowledges nothing for so long is lost
  std::string when_slow = "stretch";  // or "unprotect"
  int slow_after_ms = 5000;
  int slow_bound_ms = 500;
  bool hold_without_fence = false;  // the storage of held disks fences by itself
  bool reprotect = true;
  int reprotect_min_ms = 1000, reprotect_max_ms = 30000;
  std::string record_path;

  std::string qemu_binary = "qemu-system-x86_64";
  int qmp_timeout_ms = 5000;

  Duration arbiter_timeout() const { return std::chrono::milliseconds(arbiter_timeout_ms); }
};

/// Reads `path` and conf.d beside it. A failure's message begins with "file:line: " where a line is to blame.
Result<Config> load_config(const std::string& path);

}  // namespace remusd::control
