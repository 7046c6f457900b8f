// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "tests/simulate/plants.h"

#include <algorithm>

namespace remusd::simulate {
namespace {

constexpr PlantName kNames[] = {
    {Plant::release_before_ack, "release_before_ack"},
    {Plant::ack_before_staged, "ack_before_staged"},
    {Plant::apply_half_epoch, "apply_half_epoch"},
    {Plant::apply_before_commit, "apply_before_commit"},
    {Plant::skip_arbiter, "skip_arbiter"},
    {Plant::promote_stale_generation, "promote_stale_generation"},
    {Plant::trust_ambiguous_answer, "trust_ambiguous_answer"},
    {Plant::two_unplugs, "two_unplugs"},
    {Plant::forget_seal, "forget_seal"},
    {Plant::reuse_epoch_number, "reuse_epoch_number"},
    {Plant::ignore_digest, "ignore_digest"},
    {Plant::lose_disk_barrier, "lose_disk_barrier"},
    {Plant::resume_after_losing, "resume_after_losing"},
    {Plant::ack_after_latch, "ack_after_latch"},
    {Plant::forget_nonce, "forget_nonce"},
    {Plant::lose_release, "lose_release"},
    {Plant::deaf_detector, "deaf_detector"},
    {Plant::ask_unloaded, "ask_unloaded"},
    {Plant::run_when_loaded, "run_when_loaded"},
    {Plant::apply_before_log, "apply_before_log"},
    {Plant::retry_flush, "retry_flush"},
    {Plant::ignore_disk_error, "ignore_disk_error"},
    {Plant::promote_undrained, "promote_undrained"},
    {Plant::forget_mark, "forget_mark"},
    {Plant::hide_write_error, "hide_write_error"},
};

}  // namespace

std::span<const PlantName> plant_names() {
  return kNames;
}

std::optional<Plant> find_plant(std::string_view name) {
  const auto* found = std::find_if(std::begin(kNames), std::end(kNames),
                                   [&](const PlantName& entry) { return entry.name == name; });
  if (found == std::end(kNames)) return std::nullopt;
  return found->plant;
}

}  // namespace remusd::simulate
