// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/guest_status.h"

namespace remusd::control {

using nlohmann::json;

namespace {

json reprotect_json(const ReprotectStatus& reprotect) {
  if (!reprotect.wanted) return nullptr;
  return {{"peer", reprotect.peer},
          {"attempts", reprotect.attempts},
          {"next_in_ms", to_ms(reprotect.next_in)},
          {"last_error", reprotect.last_error}};
}

json verify_json(const DisksStatus& disks) {
  const disk::VerifyProgress& verify = disks.verify;
  json places = json::array();
  for (const auto& place : verify.places) places.push_back({{"disk", place.disk}, {"offset", place.offset}});
  return {{"number", disks.verifies},
          {"state", disk::to_string(verify.state)},
          {"total_bytes", verify.total_bytes},
          {"compared_bytes", verify.compared_bytes},
          {"different_bytes", verify.different_bytes},
          {"busy_bytes", verify.busy_bytes},
          {"places", places},
          {"failure", verify.failure.message()}};
}

json disk_json(const DiskStatus& disk) {
  const disk::DiskCounters& counters = disk.counters;
  return {{"name", disk.name},
          {"path", disk.path},
          {"bytes", disk.bytes},
          {"reads", counters.reads},
          {"read_bytes", counters.read_bytes},
          {"writes", counters.writes},
          {"written_bytes", counters.written_bytes},
          {"zeroes", counters.zeroes},
          {"flushes", counters.flushes},
          {"errors", counters.errors}};
}

json disks_json(const DisksStatus& disks) {
  json each = json::array();
  for (const DiskStatus& disk : disks.each) each.push_back(disk_json(disk));
  return {{"each", each},
          {"modes", disks.modes},
          {"notes", disks.notes},
          {"bytes", disks.bytes},
          {"sync",
           {{"total_bytes", disks.sync_total_bytes},
            {"copied_bytes", disks.sync_copied_bytes},
            {"sent_bytes", disks.sync_sent_bytes},
            {"changed_bytes", disks.sync_changed_bytes},
            {"by_map", disks.sync_by_map}}},
          {"verify", verify_json(disks)},
          {"held_bytes", {{"used", disks.held_bytes}, {"limit", disks.limit_bytes}}},
          {"waits", disks.waits},
          {"written_bytes", disks.written_bytes},
          {"committed_bytes", disks.committed_bytes},
          {"replica",
           {{"behind_bytes", disks.behind_bytes},
            {"kept_bytes", disks.kept_bytes},
            {"applied_bytes", disks.applied_bytes},
            {"applied_epoch", disks.applied_epoch},
            {"durable_epoch", disks.durable_epoch}}}};
}

}  // namespace

json to_json(const GuestStatus& status) {
  json reasons;
  uint64_t stretched = 0;
  for (size_t i = 0; i < kEpochReasons.size(); ++i) {
    reasons[std::string(kEpochReasons[i])] = status.epochs_by_reason[i];
    if (is_stretched(static_cast<EpochReason>(i))) stretched += status.epochs_by_reason[i];
  }
  return {
      {"schema_version", kSchemaVersion},
      {"vm", status.vm},
      {"node", status.node},
      {"role", status.role},
      {"state", status.state},
      {"peer", status.peer},
      {"transport", status.transport},
      {"generation", status.generation},
      {"epoch_ms", to_ms(status.pace.interval)},
      {"latency_target_ms", to_ms(status.pace.latency_target)},
      {"epoch_min_ms", to_ms(status.pace.epoch_min)},
      {"max_slowdown", status.pace.max_slowdown},
      {"epochs",
       {{"sealed", status.sealed},
        {"sent", status.sent},
        {"acked", status.acked},
        {"released", status.released},
        {"received", status.received},
        {"applied", status.applied},
        {"stretched", stretched}}},
      {"epochs_by_reason", reasons},
      {"pause_ms",
       {{"p50", status.pause_ms.p50}, {"p99", status.pause_ms.p99}, {"max", status.pause_ms.max}}},
      {"epoch_interval_ms",
       {{"p50", status.interval_ms.p50}, {"p99", status.interval_ms.p99}, {"max", status.interval_ms.max}}},
      {"commit_ms", {{"p50", status.commit_ms.p50}, {"p99", status.commit_ms.p99}}},
      {"dirty_pages", {{"p50", status.dirty_pages.p50}, {"p99", status.dirty_pages.p99}}},
      {"pid", status.pid},
      {"tracker", status.tracker},
      {"promote_ms", status.promote_ms},
      {"switchover_ms", status.switchover_ms},
      {"reason", status.reason},
      {"reason_code", status.reason_code},
      {"protection_id", status.protection_id},
      {"sync", {{"sent_pages", status.sync_sent_pages}, {"total_pages", status.sync_total_pages}}},
      {"resync",
       {{"pages_total", status.resync_pages_total},
        {"pages_matched", status.resync_pages_matched},
        {"sent_bytes", status.resync_sent_bytes}}},
      {"residue_bytes", status.residue_bytes},
      {"memory_bytes", status.memory_bytes},
      {"held_bytes", status.held_bytes},
      {"staging_bytes", {{"used", status.staging_used_bytes}, {"limit", status.staging_limit_bytes}}},
      {"shadow_bytes", {{"used", status.shadow_used_bytes}, {"limit", status.shadow_limit_bytes}}},
      {"disks", disks_json(status.disks)},
      {"heartbeat_rtt_ms", status.heartbeat_rtt_seconds * 1e3},
      {"slow", status.slow},
      {"guest", {{"reboots", status.reboots}, {"panicked", status.panicked}}},
      {"reprotect", reprotect_json(status.reprotect)},
  };
}

std::string_view status_word(primary::State state) {
  switch (state) {
    case primary::State::connecting:
      return "connecting";
    case primary::State::syncing:
      return "syncing";
    case primary::State::protecting:
      return "protected";
    case primary::State::deciding:
      return "deciding";
    case primary::State::frozen:
      return "frozen";
    case primary::State::unprotected:
      return "unprotected";
    case primary::State::fenced:
      return "fenced";
    case primary::State::failed:
      return "stopped";  // the guest ended by itself
  }
  REMUSD_ASSERT(false, "every state has a word");
}

std::string_view status_word(backup::State state) {
  switch (state) {
    case backup::State::handshake:
      return "handshake";
    case backup::State::syncing:
      return "syncing";
    case backup::State::standby:
      return "standby";
    case backup::State::loading:
      return "loading";
    case backup::State::deciding:
      return "deciding";
    case backup::State::frozen:
      return "frozen";
    case backup::State::fencing:
      return "fencing";
    case backup::State::promoting:
    case backup::State::promoted:  // until the guest is in our hands
      return "promoting";
    case backup::State::ended:
      return "stopped";  // for the moment until it is forgotten
    case backup::State::failed:
      return "failed";
  }
  REMUSD_ASSERT(false, "every state has a word");
}

bool is_final(primary::State state) {
  return state == primary::State::unprotected || state == primary::State::fenced ||
         state == primary::State::failed;
}

bool is_final(backup::State state) {
  return state == backup::State::promoted || state == backup::State::ended || state == backup::State::failed;
}

}  // namespace remusd::control
