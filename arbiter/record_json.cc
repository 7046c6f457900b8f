// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "arbiter/record_json.h"

#include <nlohmann/json.hpp>

namespace remusd::arbiter {

using nlohmann::json;

Status check_guest_name(const std::string& vm) {
  const bool plain = !vm.empty() && vm.size() <= 64 && vm.front() != '.' && vm.find('/') == std::string::npos;
  if (plain) return {};
  return {Code::invalid, "arbiter: '" + vm + "' is not a guest name"};
}

std::string encode_record(const Record& record) {
  const json object = {{"generation", record.generation}, {"owner", record.owner},
                       {"boot_id", record.boot_id},       {"epoch", record.epoch},
                       {"nonce", record.nonce},           {"peer", record.peer}};
  return object.dump(-1, ' ', false, json::error_handler_t::replace);  // Never throws, whatever the bytes.
}

Result<Record> decode_record(std::string_view text, const std::string& where) {
  const Status damaged{Code::corrupt, "arbiter record " + where +
                                          " is damaged; restore it or, when no guest " +
                                          "of that name runs anywhere, remove it"};
  if (text.size() > kMaxRecordBytes) return damaged;
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || object.size() != 6) return damaged;
  for (const char* number : {"generation", "epoch"}) {
    if (!object.contains(number) || !object[number].is_number_unsigned()) return damaged;
  }
  for (const char* word : {"owner", "boot_id", "nonce", "peer"}) {
    if (!object.contains(word) || !object[word].is_string()) return damaged;
  }
  Record record;
  record.generation = object["generation"];
  record.owner = object["owner"];
  record.boot_id = object["boot_id"];
  record.epoch = object["epoch"];
  record.nonce = object["nonce"];
  record.peer = object["peer"];
  if (record.generation == 0) return damaged;
  return record;
}

}  // namespace remusd::arbiter
