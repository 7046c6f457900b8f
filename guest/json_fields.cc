// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/json_fields.h"

namespace remusd::guest {

using nlohmann::json;

namespace {

/// Of anything that is JSON; other texts are refused by the parser.
bool nests_too_deep(std::string_view text) {
  size_t depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxJsonDepth) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

}  // namespace

json parse_json(std::string_view text) {
  if (nests_too_deep(text)) return json(json::value_t::discarded);
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

Result<json> parse_object(std::string_view text, size_t max_bytes, std::string_view what, Code code) {
  const std::string name(what);
  if (text.size() > max_bytes) {
    return Status(code, name + ": " + std::to_string(text.size()) + " bytes are more than the " +
                            std::to_string(max_bytes) + " allowed");
  }
  if (nests_too_deep(text)) {
    return Status(code, name + ": JSON that nests deeper than " + std::to_string(kMaxJsonDepth) + " levels");
  }
  std::vector<std::set<std::string>> keys;
  std::string twice;
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second && twice.empty()) twice = key;
    }
    return true;
  };
  json value = json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (value.is_discarded()) return Status(code, name + ": not valid JSON");
  if (!value.is_object()) return Status(code, name + ": expected a JSON object, got " + value.type_name());
  if (!twice.empty()) return Status(code, name + ": key '" + twice.substr(0, 64) + "' stands twice");
  return value;
}

std::string dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

JsonFields::JsonFields(const json& object, std::string where, Code code)
    : object_(object), where_(std::move(where)), code_(code) {
  if (!object_.is_object()) refuse(where_, std::string("expected an object, got ") + object_.type_name());
}

void JsonFields::refuse(const std::string& field, const std::string& why) {
  if (status_.ok()) status_ = Status(code_, field + ": " + why);
}

void JsonFields::note(const Status& status) {
  if (status_.ok()) status_ = status;
}

const json* JsonFields::find(const char* key, Need need) {
  if (!status_.ok()) return nullptr;
  asked_.insert(key);
  const auto found = object_.find(key);
  if (found != object_.end()) return &*found;
  if (need == Need::required) refuse(name_of(key), "missing");
  return nullptr;
}

bool JsonFields::take_text(const json& value, const std::string& field, size_t max_bytes, std::string* out) {
  if (!value.is_string()) {
    refuse(field, std::string("expected a string, got ") + value.type_name());
    return false;
  }
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    refuse(field, std::to_string(text.size()) + " bytes are more than the " + std::to_string(max_bytes) +
                      " allowed");
    return false;
  }
  *out = text;
  return true;
}

void JsonFields::text(const char* key, std::string* out, size_t max_bytes, Need need) {
  if (const json* value = find(key, need)) take_text(*value, name_of(key), max_bytes, out);
}

void JsonFields::flag(const char* key, bool* out, Need need) {
  const json* value = find(key, need);
  if (value == nullptr) return;
  if (!value->is_boolean()) {
    refuse(name_of(key), std::string("expected true or false, got ") + value->type_name());
    return;
  }
  *out = value->get<bool>();
}

const json* JsonFields::array(const char* key, size_t max_elements, Need need) {
  const json* value = find(key, need);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    refuse(name_of(key), std::string("expected an array, got ") + value->type_name());
    return nullptr;
  }
  if (value->size() > max_elements) {
    refuse(name_of(key), std::to_string(value->size()) + " elements are more than the " +
                             std::to_string(max_elements) + " allowed");
    return nullptr;
  }
  return value;
}

const json* JsonFields::object(const char* key, Need need) {
  const json* value = find(key, need);
  if (value != nullptr && !value->is_object()) {
    refuse(name_of(key), std::string("expected an object, got ") + value->type_name());
    return nullptr;
  }
  return value;
}

void JsonFields::texts(const char* key, std::vector<std::string>* out, size_t max_elements, size_t max_bytes,
                       Need need) {
  const json* list = array(key, max_elements, need);
  if (list == nullptr) return;
  out->clear();
  for (size_t i = 0; i < list->size(); ++i) {
    std::string element;
    if (!take_text((*list)[i], name_of(key) + "[" + std::to_string(i) + "]", max_bytes, &element)) return;
    out->push_back(std::move(element));
  }
}

void JsonFields::unsigned_number(const char* key, uint64_t* out, uint64_t max, Need need) {
  const json* value = find(key, need);
  if (value == nullptr) return;
  if (!value->is_number_unsigned()) {
    refuse(name_of(key), "expected an integer from 0 to " + std::to_string(max) + ", got " +
                             (value->is_number() ? dump(*value) : std::string(value->type_name())));
    return;
  }
  const auto number = value->get<uint64_t>();
  if (number > max) {
    refuse(name_of(key), std::to_string(number) + " is more than " + std::to_string(max));
    return;
  }
  *out = number;
}

Status JsonFields::finish() {
  if (!status_.ok()) return status_;
  for (const auto& [key, value] : object_.items()) {
    if (!asked_.contains(key)) refuse(where_ + key.substr(0, 64), "unknown key");
  }
  return status_;
}

}  // namespace remusd::guest
