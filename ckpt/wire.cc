// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/wire.h"

#include <algorithm>

#include "ckpt/format.h"

namespace remusd::ckpt {
namespace {

bool is_control(char c, bool lines) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 || byte == 0x7f) && !(lines && c == '\n');
}

}  // namespace

std::string Cursor::get_string(std::string_view field, bool lines) {
  const auto size = get<uint16_t>(field);
  require(size <= kMaxStringBytes, field, "is too long");
  const std::span<const std::byte> bytes = take(size, field);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  require(std::none_of(text.begin(), text.end(), [&](char c) { return is_control(c, lines); }), field,
          "holds control characters");
  return text;
}

void put_string(std::string_view text, std::vector<std::byte>* out, bool lines) {
  size_t size = std::min<size_t>(text.size(), kMaxStringBytes);
  if (size < text.size()) {
    while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xc0) == 0x80) --size;
  }
  std::string clean(text.substr(0, size));
  std::replace_if(
      clean.begin(), clean.end(), [&](char c) { return is_control(c, lines); }, '?');
  put(static_cast<uint16_t>(clean.size()), out);
  put_bytes(std::as_bytes(std::span(clean)), out);
}

}  // namespace remusd::ckpt
