// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Reads TOML tables into plain fields. Every complaint is "file:line: ..." and names the key and what is
// allowed there; a key that no field claims is one of them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// toml++ 3.3 asserts, or with NDEBUG assumes, what a wrong file breaks ("[/]"), just before the code that
// complains of it in words.
#pragma push_macro("NDEBUG")
#undef NDEBUG
#define TOML_ASSERT(condition) static_cast<void>(0)
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include "ckpt/status.h"

namespace remusd::control {

struct TomlField {
  std::string key;
  std::string allowed;  // completes "must be ..."
  /// Takes the value; `invalid` without a message stands for "not what is allowed".
  std::function<Status(const toml::node&)> take;
};

Result<toml::table> parse_toml(const std::string& path);
/// "file:line" of a node.
std::string where(const toml::node& node);
/// Hands every key of `table` to its field. `prefix` ("protection.") is put before keys in messages.
Status read_fields(const toml::table& table, const std::string& prefix, const std::vector<TomlField>& fields);

TomlField text_field(std::string key, std::string* out);
TomlField choice_field(std::string key, std::vector<std::string> choices, std::string* out);
/// A text that `good` accepts; `allowed` describes it.
TomlField checked_text_field(std::string key, std::string allowed,
                             std::function<bool(const std::string&)> good, std::string* out);
TomlField bool_field(std::string key, bool* out);
TomlField text_list_field(std::string key, std::vector<std::string>* out);
/// An array of texts, each of which `good` accepts; `allowed` describes one. A wrong one is told with its
/// line.
TomlField checked_text_list_field(std::string key, std::string allowed,
                                  std::function<bool(const std::string&)> good,
                                  std::vector<std::string>* out);
TomlField table_field(std::string key, std::function<Status(const toml::table&)> read);

/// What a field that takes a number does, for any integer type.
Result<int64_t> integer_in(const toml::node& node, int64_t low, int64_t high);
template <typename Integer>
TomlField integer_field(std::string key, int64_t low, int64_t high, Integer* out) {
  return {std::move(key), "an integer from " + std::to_string(low) + " to " + std::to_string(high),
          [=](const toml::node& node) -> Status {
            REMUSD_ASSIGN(const int64_t value, integer_in(node, low, high));
            *out = static_cast<Integer>(value);
            return {};
          }};
}

/// Names of nodes and guests: [a-z0-9][a-z0-9._-]{0,31}.
bool is_name(const std::string& text);
/// "host:port", the port from 1 to 65535; an IPv6 host stands in brackets.
bool is_address(const std::string& text);
extern const char* const kNameRule;

}  // namespace remusd::control
