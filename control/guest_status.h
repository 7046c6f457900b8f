// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What an operator is told about one guest, as plain data. The JSON of `status` and the metrics are made of
// it.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "backup/session.h"
#include "control/exit_code.h"
#include "disk/nbd_server.h"
#include "primary/protection.h"

namespace remusd::control {

/// Every word that `state` may be.
inline constexpr std::array<std::string_view, 15> kStates{
    "stopped", "running", "connecting", "syncing",   "protected",   "deciding", "frozen", "handshake",
    "standby", "loading", "fencing",    "promoting", "unprotected", "fenced",   "failed"};

struct Quantiles {
  double p50 = 0, p99 = 0, max = 0;
};

/// One disk where the guest runs, since its daemon serves it.
struct DiskStatus {
  std::string name, path;
  uint64_t bytes = 0;
  disk::DiskCounters counters;
};

/// What a guest's disks are up to. Of the primary until `behind`.
struct DisksStatus {
  std::vector<DiskStatus> each;
  std::vector<std::string> notes;  // what an operator should know of them
  std::vector<std::string> modes;  // by disk
  uint64_t bytes = 0;              // of all of them
  uint64_t sync_total_bytes = 0, sync_copied_bytes = 0, sync_sent_bytes = 0, sync_changed_bytes = 0;
  bool sync_by_map = false;
  disk::VerifyProgress verify;
  uint64_t verifies = 0;
  uint64_t held_bytes = 0, limit_bytes = 0, waits = 0, written_bytes = 0, committed_bytes = 0;
  uint64_t kept_bytes = 0;  // of held disks, on the backup
  uint64_t behind_bytes = 0, applied_bytes = 0, applied_epoch = 0, durable_epoch = 0;
};

/// The next automatic protection, where one is wanted.
struct ReprotectStatus {
  bool wanted = false;
  std::string peer;
  uint64_t attempts = 0;
  Duration next_in{};  // zero: an attempt is under way
  std::string last_error;
};

struct GuestStatus {
  std::string vm, node;
  std::string role = "primary";  // or "backup"
  std::string state = "stopped";
  std::string peer;
  uint64_t generation = 0;
  primary::PaceOptions pace{Duration::zero()};  // interval 0: never protected
  uint64_t sealed = 0, sent = 0, acked = 0, released = 0, received = 0, applied = 0;  // epochs
  Quantiles pause_ms, interval_ms, commit_ms, dirty_pages;
  int pid = 0;
  std::string tracker = "none";
  double promote_ms = 0;
  double switchover_ms = 0;    // how long the guest stood when it was last handed over from here
  std::string reason;          // why the last protection or session ended
  std::string reason_code;     // its Code
  uint64_t protection_id = 0;  // counts protect commands, so that a caller knows its own
  uint64_t sync_sent_pages = 0, sync_total_pages = 0;
  uint64_t resync_pages_total = 0, resync_pages_matched = 0, resync_sent_bytes = 0;
  uint64_t residue_bytes = 0;
  uint64_t memory_bytes = 0, held_bytes = 0;
  uint64_t staging_used_bytes = 0, staging_limit_bytes = 0, link_queue_bytes = 0;
  uint64_t shadow_used_bytes = 0, shadow_limit_bytes = 0;
  std::array<uint64_t, kEpochReasons.size()> epochs_by_reason{};
  double heartbeat_rtt_seconds = 0;
  bool live = false;      // a protection or a session goes on
  bool slow = false;      // the backup is, at present
  uint64_t reboots = 0;   // of the guest, since it came to run here
  bool panicked = false;  // its system did, and has not rebooted since
  DisksStatus disks;
  ReprotectStatus reprotect;
  std::string transport;  // "tls" or "plain" while it does
};

nlohmann::json to_json(const GuestStatus& status);

/// `state` words for the engine's states.
std::string_view status_word(primary::State state);
std::string_view status_word(backup::State state);
bool is_final(primary::State state);
bool is_final(backup::State state);

}  // namespace remusd::control
