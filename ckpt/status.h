// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Status and Result<T> for what can go wrong; REMUSD_ASSERT for what cannot.
//
// A Status is a small value. Its message is one line that says what was tried, on what, why it failed and,
// where it helps, what to do: it is shown to operators as it stands.
#pragma once

#include <cerrno>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace remusd {

enum class Code {
  ok,
  invalid,      // the caller's input is wrong (usage, configuration)
  not_found,    // no such guest, peer, file
  exists,       // already protected, already running
  unsafe,       // refused: going on could lose output or run two guests
  unavailable,  // peer, arbiter or kernel facility cannot be reached now; trying again may help
  timed_out,
  corrupt,      // bytes that cannot be trusted
  exhausted,    // a bound was reached
  denied,       // no rights
  unsupported,  // this kernel, QEMU or peer cannot do it
  io,           // a system call failed
};

std::string_view to_string(Code code);
/// The inverse of to_string; nullopt for a word that is no code.
std::optional<Code> code_from_string(std::string_view word);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok_status() { return {}; }
  /// "<what>: <strerror(error)>"; EACCES and EPERM become `denied`, ENOENT `not_found`, the rest `io`.
  static Status from_errno(std::string what, int error = errno);

  bool ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  /// The same failure with "<context>: " before its message.
  Status with_context(std::string_view context) const;

 private:
  Code code_ = Code::ok;
  std::string message_;
};

/// A T, or the Status that says why there is none. Test ok() before value().
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(Status status) : status_(std::move(status)) {}  // NOLINT(google-explicit-constructor)
  Result(T value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor)

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

[[noreturn]] void assertion_failed(const char* condition, const char* file, int line, const char* why);

}  // namespace remusd

// A broken invariant is a bug: say where and abort. On in every build.
#define REMUSD_ASSERT(condition, why) \
  ((condition) ? static_cast<void>(0) : ::remusd::assertion_failed(#condition, __FILE__, __LINE__, why))

#define REMUSD_CONCAT_INNER(a, b) a##b
#define REMUSD_CONCAT(a, b) REMUSD_CONCAT_INNER(a, b)

// NOLINTBEGIN(bugprone-macro-parentheses): `target` may be a declaration.

// Returns the Status of `expression` from the enclosing function when it is a failure.
#define REMUSD_TRY(expression)                                                           \
  do {                                                                                   \
    if (::remusd::Status try_status = (expression); !try_status.ok()) return try_status; \
  } while (false)

// `REMUSD_ASSIGN(auto x, f());` takes the value of a Result, or returns its Status.
#define REMUSD_ASSIGN(target, expression) \
  REMUSD_ASSIGN_INNER(REMUSD_CONCAT(assign_result_, __LINE__), target, expression)
#define REMUSD_ASSIGN_INNER(name, target, expression) \
  auto name = (expression);                           \
  if (!name.ok()) return name.status();               \
  target = *std::move(name)

// NOLINTEND(bugprone-macro-parentheses)
