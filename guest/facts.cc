// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/facts.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "guest/cpu_features.h"
#include "guest/json_fields.h"

namespace remusd::guest {
namespace {

using nlohmann::json;

// Bounds of what a peer may claim.
constexpr size_t kMaxFactsBytes = size_t{1} << 20;
constexpr size_t kMaxTextBytes = 256;
constexpr size_t kMaxFeatureWords = 512;
constexpr size_t kMaxDevices = 4096;
constexpr size_t kMaxDeviceBytes = 1024;
// Of differences(); the last line then says how many were left out.
constexpr size_t kMaxLines = 100;

std::string text_or_none(const std::string& text) {
  return text.empty() ? "(none)" : "'" + text + "'";
}

void compare(std::vector<std::string>* lines, const char* fact, const std::string& primary,
             const std::string& backup) {
  if (primary == backup) return;
  lines->push_back(std::string(fact) + ": primary " + text_or_none(primary) + ", backup " +
                   text_or_none(backup));
}

void compare(std::vector<std::string>* lines, const char* fact, uint64_t primary, uint64_t backup) {
  if (primary == backup) return;
  lines->push_back(std::string(fact) + ": primary " + std::to_string(primary) + ", backup " +
                   std::to_string(backup));
}

void compare_features(std::vector<std::string>* lines, const Facts& primary, const Facts& backup) {
  struct Pair {
    const FeatureWord* primary = nullptr;
    const FeatureWord* backup = nullptr;
  };
  std::map<std::string_view, Pair> words;
  for (const FeatureWord& word : primary.features) words[word.name].primary = &word;
  for (const FeatureWord& word : backup.features) words[word.name].backup = &word;
  for (const auto& [name, pair] : words) {
    if (pair.primary == nullptr || pair.backup == nullptr) {
      lines->push_back("cpu feature word " + std::string(name) + ": only " +
                       (pair.primary != nullptr ? "primary" : "backup") + " reports it");
      continue;
    }
    const uint32_t differing = pair.primary->value ^ pair.backup->value;
    for (unsigned bit = 0; bit < 32; ++bit) {
      if (((differing >> bit) & 1) == 0) continue;
      const bool on_primary = ((pair.primary->value >> bit) & 1) != 0;
      lines->push_back(
          "cpu feature " + feature_name(name, bit) +
          (on_primary ? ": primary has it, backup does not" : ": backup has it, primary does not"));
    }
  }
}

void compare_devices(std::vector<std::string>* lines, const Facts& primary, const Facts& backup) {
  std::vector<std::string> left = primary.devices, right = backup.devices, only;
  std::sort(left.begin(), left.end());
  std::sort(right.begin(), right.end());
  std::set_difference(left.begin(), left.end(), right.begin(), right.end(), std::back_inserter(only));
  for (const std::string& device : only) lines->push_back("device only on primary: " + device);
  only.clear();
  std::set_difference(right.begin(), right.end(), left.begin(), left.end(), std::back_inserter(only));
  for (const std::string& device : only) lines->push_back("device only on backup: " + device);
}

}  // namespace

std::vector<std::string> differences(const Facts& primary, const Facts& backup) {
  std::vector<std::string> lines;
  compare(&lines, "driver", primary.driver, backup.driver);
  compare(&lines, "hypervisor version", primary.version, backup.version);
  compare(&lines, "machine type", primary.machine, backup.machine);
  compare(&lines, "accelerator", primary.accelerator, backup.accelerator);
  compare(&lines, "cpu model", primary.cpu_model, backup.cpu_model);
  compare(&lines, "vcpus", primary.vcpus, backup.vcpus);
  compare(&lines, "memory bytes", primary.memory_bytes, backup.memory_bytes);
  compare_features(&lines, primary, backup);
  compare_devices(&lines, primary, backup);
  if (lines.empty() && primary != backup) {
    lines.push_back("cpu feature words or devices: the same ones in another order or number");
  }
  if (lines.size() > kMaxLines) {
    const size_t more = lines.size() - kMaxLines;
    lines.resize(kMaxLines);
    lines.push_back("and " + std::to_string(more) + " more differences");
  }
  return lines;
}

std::string to_json(const Facts& facts) {
  json features = json::array();
  for (const FeatureWord& word : facts.features) {
    features.push_back({{"name", word.name}, {"value", word.value}});
  }
  return dump(json{
      {"driver", facts.driver},
      {"version", facts.version},
      {"machine", facts.machine},
      {"accelerator", facts.accelerator},
      {"cpu_model", facts.cpu_model},
      {"vcpus", facts.vcpus},
      {"memory_bytes", facts.memory_bytes},
      {"features", std::move(features)},
      {"devices", facts.devices},
  });
}

Result<Facts> facts_from_json(std::string_view text) {
  constexpr Code kCode = Code::corrupt;
  constexpr auto kRequired = JsonFields::Need::required;
  REMUSD_ASSIGN(const json value, parse_object(text, kMaxFactsBytes, "facts", kCode));
  Facts facts;
  JsonFields fields(value, "", kCode);
  fields.text("driver", &facts.driver, kMaxTextBytes, kRequired);
  fields.text("version", &facts.version, kMaxTextBytes, kRequired);
  fields.text("machine", &facts.machine, kMaxTextBytes, kRequired);
  fields.text("accelerator", &facts.accelerator, kMaxTextBytes, kRequired);
  fields.text("cpu_model", &facts.cpu_model, kMaxTextBytes, kRequired);
  fields.number("vcpus", &facts.vcpus, kRequired);
  fields.number("memory_bytes", &facts.memory_bytes, kRequired);
  if (const json* words = fields.array("features", kMaxFeatureWords, kRequired)) {
    for (size_t i = 0; i < words->size(); ++i) {
      FeatureWord word;
      JsonFields members((*words)[i], "features[" + std::to_string(i) + "].", kCode);
      members.text("name", &word.name, kMaxTextBytes, kRequired);
      members.number("value", &word.value, kRequired);
      fields.note(members.finish());
      facts.features.push_back(std::move(word));
    }
  }
  fields.texts("devices", &facts.devices, kMaxDevices, kMaxDeviceBytes, kRequired);
  if (Status status = fields.finish(); !status.ok()) return status.with_context("facts");
  return facts;
}

}  // namespace remusd::guest
