// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/status.h"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <system_error>

namespace remusd {
namespace {

constexpr std::array<std::pair<Code, std::string_view>, 12> kNames{{
    {Code::ok, "ok"},
    {Code::invalid, "invalid"},
    {Code::not_found, "not_found"},
    {Code::exists, "exists"},
    {Code::unsafe, "unsafe"},
    {Code::unavailable, "unavailable"},
    {Code::timed_out, "timed_out"},
    {Code::corrupt, "corrupt"},
    {Code::exhausted, "exhausted"},
    {Code::denied, "denied"},
    {Code::unsupported, "unsupported"},
    {Code::io, "io"},
}};

}  // namespace

std::string_view to_string(Code code) {
  for (const auto& [known, name] : kNames) {
    if (known == code) return name;
  }
  REMUSD_ASSERT(false, "every code has a name");
}

std::optional<Code> code_from_string(std::string_view word) {
  for (const auto& [known, name] : kNames) {
    if (name == word) return known;
  }
  return std::nullopt;
}

Status Status::from_errno(std::string what, int error) {
  Code code = Code::io;
  if (error == EACCES || error == EPERM) code = Code::denied;
  if (error == ENOENT) code = Code::not_found;
  return {code, std::move(what) + ": " + std::generic_category().message(error)};
}

Status Status::with_context(std::string_view context) const {
  if (ok()) return *this;
  return {code_, std::string(context) + ": " + message_};
}

void assertion_failed(const char* condition, const char* file, int line, const char* why) {
  std::fprintf(stderr, "remusd: bug at %s:%d: %s does not hold (%s)\n", file, line, condition, why);
  std::abort();
}

}  // namespace remusd
