// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Little-endian fields to bytes and back, for the record codecs.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ckpt/status.h"

namespace remusd::ckpt {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in memory");

inline void put_bytes(std::span<const std::byte> bytes, std::vector<std::byte>* out) {
  out->insert(out->end(), bytes.begin(), bytes.end());
}

template <typename T>
void put(T value, std::vector<std::byte>* out) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  out->insert(out->end(), bytes, bytes + sizeof(T));
}

/// Reads fields one after another. The first that does not fit makes the cursor fail; later reads give zeros.
/// Test with finish(), which also refuses bytes left over.
class Cursor {
 public:
  Cursor(std::string_view record, std::span<const std::byte> bytes) : record_(record), rest_(bytes) {}

  template <typename T>
  T get(std::string_view field) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    if (const std::span<const std::byte> bytes = take(sizeof(T), field); !bytes.empty())
      std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  /// Exactly `size` bytes, or an empty span and failure.
  std::span<const std::byte> take(size_t size, std::string_view field) {
    if (!status_.ok()) return {};
    if (size > rest_.size()) {
      refuse(field, "is cut off");
      return {};
    }
    const std::span<const std::byte> bytes = rest_.first(size);
    rest_ = rest_.subspan(size);
    return bytes;
  }
  std::span<const std::byte> take_rest() {
    const std::span<const std::byte> bytes = rest_;
    rest_ = {};
    return status_.ok() ? bytes : std::span<const std::byte>{};
  }
  /// A u16 length and that many bytes, at most kMaxStringBytes, without control characters (but newlines when
  /// `lines`).
  std::string get_string(std::string_view field, bool lines = false);

  /// Fails unless `holds`.
  void require(bool holds, std::string_view field, std::string_view problem) {
    if (!holds) refuse(field, problem);
  }
  bool ok() const { return status_.ok(); }
  size_t left() const { return rest_.size(); }
  Status finish() {
    if (!rest_.empty()) refuse("body", "has " + std::to_string(rest_.size()) + " bytes too many");
    return status_;
  }

 private:
  void refuse(std::string_view field, std::string_view problem) {
    if (status_.ok())
      status_ = Status(Code::corrupt,
                       std::string(record_) + " record: " + std::string(field) + " " + std::string(problem));
  }

  std::string_view record_;
  std::span<const std::byte> rest_;
  Status status_;
};

/// Cut to kMaxStringBytes at a UTF-8 boundary, control characters replaced by '?'.
void put_string(std::string_view text, std::vector<std::byte>* out, bool lines = false);

}  // namespace remusd::ckpt
