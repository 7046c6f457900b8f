// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A fuzz target: one decoder, driven in this process with whatever bytes come, and what must hold whatever
// they are. Each tests/fuzz/<unit>_fuzz.cc defines `run` and `seeds` and registers them:
//
//   REMUSD_FUZZ_TARGET(frame, run, seeds);
//
// libfuzzer_main.cc makes a libFuzzer program of one target, replay_main.cc a plain program of all of them,
// which runs the seeds and their simplest mutants under any compiler.
//
// Rules: no thread, file or wait for each input where there is another way; a property that fails aborts by
// REMUSD_ASSERT; the same bytes always do the same.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ckpt/status.h"

namespace remusd::fuzz {

using Bytes = std::vector<std::byte>;
using View = std::span<const std::byte>;

inline View bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

/// Valid inputs, made by the real encoders, and words for the mutator to put together.
struct Seeds {
  std::vector<Bytes> inputs;
  std::vector<std::string> words;

  void add(Bytes input) { inputs.push_back(std::move(input)); }
  /// `head`, and the text after it.
  void add_text(std::string_view text, Bytes head = {}) {
    const View bytes = bytes_of(text);
    head.insert(head.end(), bytes.begin(), bytes.end());
    add(std::move(head));
  }
};

struct Target {
  const char* unit;
  void (*run)(View input);
  void (*seeds)(Seeds* seeds);
};

/// All targets of this program.
inline std::vector<Target>& targets() {
  static std::vector<Target> all;
  return all;
}

struct Registration {
  explicit Registration(const Target& target) { targets().push_back(target); }
};

#define REMUSD_FUZZ_TARGET(unit, run, seeds) \
  static const ::remusd::fuzz::Registration registration_##unit({#unit, run, seeds})

/// Takes an input apart. Where it ends, numbers are 0 and bytes are few.
class Input {
 public:
  explicit Input(View bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }
  size_t left() const { return rest_.size(); }
  View take(size_t most) {
    const View bytes = rest_.first(std::min(most, rest_.size()));
    rest_ = rest_.subspan(bytes.size());
    return bytes;
  }
  View rest() { return take(rest_.size()); }
  template <typename T = uint8_t>
  T number() {
    static_assert(std::is_unsigned_v<T>);
    T value = 0;
    const View bytes = take(sizeof value);
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  /// A u16 length and that many bytes.
  View chunk() {
    const auto size = number<uint16_t>();
    return take(size);
  }

 private:
  View rest_;
};

inline std::string_view text_of(View bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

inline bool same(View left, View right) {
  // Not std::equal: each of its comparisons would be traced.
  return left.size() == right.size() &&
         (left.empty() || std::memcmp(left.data(), right.data(), left.size()) == 0);
}

/// What Input::number() and Input::chunk() take.
template <typename T>
void put_number(T value, Bytes* out) {
  static_assert(std::is_unsigned_v<T>);
  const auto bytes = std::as_bytes(std::span(&value, 1));
  out->insert(out->end(), bytes.begin(), bytes.end());
}
inline void put_chunk(View bytes, Bytes* out) {
  REMUSD_ASSERT(bytes.size() <= UINT16_MAX, "a seed is small");
  put_number(static_cast<uint16_t>(bytes.size()), out);
  out->insert(out->end(), bytes.begin(), bytes.end());
}
inline void put_chunk(std::string_view text, Bytes* out) {
  put_chunk(bytes_of(text), out);
}

/// A failure has a code and says something.
inline void require_reason(const Status& status) {
  REMUSD_ASSERT(!status.ok() && !status.message().empty(), "a failure says why");
}

}  // namespace remusd::fuzz
