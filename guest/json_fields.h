// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Strict reading of JSON that came from outside: every key is known, of the right type and within its bound,
// or the whole text is refused with the name of the field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/status.h"

namespace remusd::guest {

/// How deep arrays and objects from outside may nest: copying, comparing and printing a value recurse.
inline constexpr size_t kMaxJsonDepth = 64;

/// Parses JSON that came from outside. The value is_discarded() when it is not JSON, or nests deeper.
nlohmann::json parse_json(std::string_view text);

/// Parses one JSON object of at most `max_bytes`. Refuses keys that stand twice, which parsers differ on.
/// `what` names the text in errors; `code` is the code of every failure.
Result<nlohmann::json> parse_object(std::string_view text, size_t max_bytes, std::string_view what,
                                    Code code);

/// Text for a peer or a file; bytes that are not UTF-8 become U+FFFD.
std::string dump(const nlohmann::json& value);

/// Reads the members of one object. The first failure is kept and told by finish(); after it the other calls
/// do nothing. The object must outlive the reader.
class JsonFields {
 public:
  /// `where` is the prefix of field names in errors: "", "nics[0].".
  JsonFields(const nlohmann::json& object, std::string where, Code code);

  enum class Need { optional, required };

  void text(const char* key, std::string* out, size_t max_bytes, Need need = Need::optional);
  void flag(const char* key, bool* out, Need need = Need::optional);
  void texts(const char* key, std::vector<std::string>* out, size_t max_elements, size_t max_bytes,
             Need need = Need::optional);
  template <typename T>
  void number(const char* key, T* out, Need need = Need::optional) {
    uint64_t value = *out;
    unsigned_number(key, &value, std::numeric_limits<T>::max(), need);
    *out = static_cast<T>(value);
  }
  /// The member, an array of at most `max_elements` or an object; nullptr when it is absent or refused.
  const nlohmann::json* array(const char* key, size_t max_elements, Need need = Need::optional);
  const nlohmann::json* object(const char* key, Need need = Need::optional);

  std::string name_of(const char* key) const { return where_ + key; }
  /// Keeps the failure of a nested reader.
  void note(const Status& status);
  /// The first failure, or the first key that nobody asked for.
  Status finish();

 private:
  void unsigned_number(const char* key, uint64_t* out, uint64_t max, Need need);
  const nlohmann::json* find(const char* key, Need need);
  void refuse(const std::string& field, const std::string& why);
  bool take_text(const nlohmann::json& value, const std::string& field, size_t max_bytes, std::string* out);

  const nlohmann::json& object_;
  std::string where_;
  Code code_;
  Status status_;
  std::set<std::string_view> asked_;
};

}  // namespace remusd::guest
