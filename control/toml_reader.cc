// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/toml_reader.h"

#include <algorithm>
#include <sstream>

namespace remusd::control {

const char* const kNameRule = "1 to 32 of a-z 0-9 . _ -, beginning with a letter or digit";

namespace {

const Status kWrong(Code::invalid, "");

std::string join(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

std::string shown(const toml::node& node) {
  if (const auto* text = node.as_string()) return "\"" + text->get() + "\"";
  if (const auto* number = node.as_integer()) return std::to_string(number->get());
  if (const auto* truth = node.as_boolean()) return truth->get() ? "true" : "false";
  if (const auto* real = node.as_floating_point()) {
    std::ostringstream out;
    out << real->get();
    return out.str();
  }
  if (node.is_table()) return "a table";
  if (node.is_array()) return "an array";
  return "a date or time";
}

}  // namespace

Result<toml::table> parse_toml(const std::string& path) {
  try {
    return toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    const uint32_t line = error.source().begin.line;
    if (line == 0)
      return Status(Code::not_found, path + ": cannot be read: " + std::string(error.description()));
    return Status(Code::invalid, path + ":" + std::to_string(line) + ": " + std::string(error.description()));
  }
}

std::string where(const toml::node& node) {
  const toml::source_region& source = node.source();
  return (source.path ? *source.path : std::string("?")) + ":" + std::to_string(source.begin.line);
}

Status read_fields(const toml::table& table, const std::string& prefix,
                   const std::vector<TomlField>& fields) {
  for (const auto& entry : table) {
    const toml::key& key = entry.first;
    const toml::node& node = entry.second;
    const auto field = std::find_if(fields.begin(), fields.end(),
                                    [&](const TomlField& candidate) { return candidate.key == key.str(); });
    if (field == fields.end()) {
      std::vector<std::string> known;
      for (const TomlField& candidate : fields) known.push_back(candidate.key);
      const std::string allowed = known.empty() ? "" : "; allowed here: " + join(known, ", ");
      const std::string line = std::to_string(key.source().begin.line);
      const std::string file = key.source().path ? *key.source().path : std::string("?");
      return {Code::invalid,
              file + ":" + line + ": unknown key '" + prefix + std::string(key.str()) + "'" + allowed};
    }
    Status taken = field->take(node);
    if (taken.ok()) continue;
    if (!taken.message().empty()) return taken;
    return {Code::invalid, where(node) + ": '" + prefix + field->key + "' must be " + field->allowed +
                               ", not " + shown(node)};
  }
  return {};
}

TomlField text_field(std::string key, std::string* out) {
  return checked_text_field(
      std::move(key), "a text", [](const std::string&) { return true; }, out);
}

TomlField choice_field(std::string key, std::vector<std::string> choices, std::string* out) {
  std::string allowed = "one of \"" + join(choices, "\", \"") + "\"";
  auto good = [choices = std::move(choices)](const std::string& text) {
    return std::find(choices.begin(), choices.end(), text) != choices.end();
  };
  return checked_text_field(std::move(key), std::move(allowed), std::move(good), out);
}

TomlField checked_text_field(std::string key, std::string allowed,
                             std::function<bool(const std::string&)> good, std::string* out) {
  return {std::move(key), std::move(allowed),
          [good = std::move(good), out](const toml::node& node) -> Status {
            const auto* text = node.as_string();
            if (text == nullptr || !good(text->get())) return kWrong;
            *out = text->get();
            return {};
          }};
}

TomlField bool_field(std::string key, bool* out) {
  return {std::move(key), "true or false", [out](const toml::node& node) -> Status {
            const auto* value = node.as_boolean();
            if (value == nullptr) return kWrong;
            *out = value->get();
            return {};
          }};
}

TomlField text_list_field(std::string key, std::vector<std::string>* out) {
  return checked_text_list_field(
      std::move(key), "a text", [](const std::string&) { return true; }, out);
}

TomlField checked_text_list_field(std::string key, std::string allowed,
                                  std::function<bool(const std::string&)> good,
                                  std::vector<std::string>* out) {
  const std::string each = ": each element of '" + key + "' must be " + allowed + ", not ";
  return {std::move(key), "an array of texts",
          [each, good = std::move(good), out](const toml::node& node) -> Status {
            const toml::array* array = node.as_array();
            if (array == nullptr) return kWrong;
            std::vector<std::string> texts;
            for (const toml::node& element : *array) {
              const auto* text = element.as_string();
              if (text == nullptr || !good(text->get())) {
                return {Code::invalid, where(element) + each + shown(element)};
              }
              texts.push_back(text->get());
            }
            *out = std::move(texts);
            return {};
          }};
}

TomlField table_field(std::string key, std::function<Status(const toml::table&)> read) {
  return {std::move(key), "a table", [read = std::move(read)](const toml::node& node) -> Status {
            const toml::table* table = node.as_table();
            return table == nullptr ? kWrong : read(*table);
          }};
}

Result<int64_t> integer_in(const toml::node& node, int64_t low, int64_t high) {
  const auto* number = node.as_integer();
  if (number == nullptr || number->get() < low || number->get() > high) return kWrong;
  return number->get();
}

bool is_name(const std::string& text) {
  if (text.empty() || text.size() > 32) return false;
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return plain(text[0]) && std::all_of(text.begin(), text.end(),
                                       [&](char c) { return plain(c) || c == '.' || c == '_' || c == '-'; });
}

bool is_address(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  const std::string host = text.substr(0, colon);
  if (host.find(':') != std::string::npos && (host.front() != '[' || host.back() != ']')) return false;
  const std::string port = text.substr(colon + 1);
  if (port.empty() || port.size() > 5 || port.find_first_not_of("0123456789") != std::string::npos)
    return false;
  const int number = std::stoi(port);
  return number >= 1 && number <= 65535;
}

}  // namespace remusd::control
