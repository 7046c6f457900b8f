// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "ckpt/fail_point.h"

#if defined(REMUSD_FAILPOINTS)

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>

#include "ckpt/scoped_fd.h"

namespace remusd {
namespace {

enum Act : uint32_t { kNone, kKill, kStop, kError };
constexpr std::array<std::string_view, 4> kActions = {"none", "kill", "stop", "error"};

using Table = std::array<FailPointSlot, kFailPoints.size()>;

[[noreturn]] void wrong(std::string_view text, const char* why) {
  std::fprintf(stderr, "fail point '%.*s': %s\n", static_cast<int>(text.size()), text.data(), why);
  std::_Exit(2);
}

/// Up to `end`, which is taken away too; all of it when `end` does not occur.
std::string_view cut(std::string_view* rest, char end) {
  const size_t at = rest->find(end);
  const std::string_view head = rest->substr(0, at);
  rest->remove_prefix(at == std::string_view::npos ? rest->size() : at + 1);
  return head;
}

uint64_t number(std::string_view digits, std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value == 0) wrong(text, "no pass");
  return value;
}

template <size_t size>
size_t find(const std::array<std::string_view, size>& names, std::string_view name) {
  for (size_t i = 0; i < size; ++i) {
    if (names[i] == name) return i;
  }
  return size;
}

void arm(Table* table, std::string_view text) {
  std::string_view rest = text;
  const size_t point = find(kFailPoints, cut(&rest, '='));
  if (point == kFailPoints.size()) wrong(text, "no such name");
  const size_t action = find(kActions, cut(&rest, '@'));
  if (action == kActions.size() || action == kNone) wrong(text, "kill, stop or error");
  FailPointSlot& slot = (*table)[point];
  slot.first = 1;
  slot.count = 1;
  if (!rest.empty()) {
    slot.first = number(cut(&rest, '-'), text);
    if (!rest.empty()) {
      const uint64_t last = number(rest, text);
      if (last < slot.first) wrong(text, "passes that go backwards");
      slot.count = static_cast<uint32_t>(last - slot.first + 1);
    }
  }
  slot.action = static_cast<uint32_t>(action);
}

Table* shared(const char* path) {
  const ScopedFd file(::open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file || ::ftruncate(file.get(), sizeof(Table)) != 0) wrong(path, "cannot be opened");
  void* memory = ::mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) wrong(path, "cannot be mapped");
  return static_cast<Table*>(memory);
}

Table* make_table() {
  static Table own{};
  const char* path = std::getenv("REMUSD_FAIL_POINT_TABLE");
  Table* table = path != nullptr ? shared(path) : &own;
  const char* text = std::getenv("REMUSD_FAIL_POINTS");
  for (std::string_view rest = text != nullptr ? text : ""; !rest.empty();) arm(table, cut(&rest, ';'));
  return table;
}

}  // namespace

Status fail_point_error(FailPoint point) {
  static Table* const table = make_table();
  FailPointSlot& slot = (*table)[point.index()];
  const uint64_t pass = slot.passes.fetch_add(1) + 1;
  const uint32_t action = slot.action;
  if (action == kNone || pass < slot.first || pass - slot.first >= slot.count) return {};
  if (action == kKill) ::kill(::getpid(), SIGKILL);
  if (action == kStop) ::kill(::getpid(), SIGSTOP);
  if (action != kError) return {};
  return {Code::io, "fail point " + std::string(kFailPoints[point.index()])};
}

}  // namespace remusd

#endif
