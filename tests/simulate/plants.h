// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Deliberate defects, one switched on at a time, to prove that the checkers see what they are there to see.
// They live in the simulated shells and services only: the daemon has no code for them.
#pragma once

#include <optional>
#include <span>
#include <string_view>

namespace remusd::simulate {

enum class Plant {
  none,
  release_before_ack,        // output leaves when COMMIT is queued
  ack_before_staged,         // ACK leaves when COMMIT comes, staging goes on after it
  apply_half_epoch,          // the second half of an epoch's pages is not written
  apply_before_commit,       // pages of an open epoch are written as they come
  skip_arbiter,              // the backup takes the right to run without asking
  promote_stale_generation,  // the backup asks for whatever generation follows the record's
  trust_ambiguous_answer,    // an unknown answer counts as won
  two_unplugs,               // the primary lets output pass when it asks, not when it has won
  forget_seal,               // what is sent after a checkpoint keeps the tag of the epoch before
  reuse_epoch_number,        // a new session's epochs are measured by the old session's acknowledgements
  ignore_digest,             // the backup believes what came and not what COMMIT says
  lose_disk_barrier,         // the journal lets go of what was written to the disk and not flushed
  resume_after_losing,       // the loser goes on instead of being destroyed
  ack_after_latch,           // the backup acknowledges after it has asked for the right to run
  forget_nonce,              // our own earlier request is taken for another's
  lose_release,              // acknowledgements are not told to the gate
  deaf_detector,             // the backup does not look for silence
  ask_unloaded,              // a guest that stands is asked for although it could not be loaded
  run_when_loaded,           // a guest that stands runs on the backup once it is loaded
  apply_before_log,          // an epoch is written to the replica's disk before the journal is flushed
  retry_flush,               // a failed flush of the replica is tried again, and counts when that works
  ignore_disk_error,         // a failed write to the replica's disk is not told
  promote_undrained,         // the guest runs before what was committed is on the disk
  forget_mark,               // a first sync begins, and the journal still has the disk of before
  hide_write_error,          // the guest is not told of a failed write to its disk
};

struct PlantName {
  Plant plant;
  std::string_view name;
};
std::span<const PlantName> plant_names();
std::optional<Plant> find_plant(std::string_view name);

}  // namespace remusd::simulate
