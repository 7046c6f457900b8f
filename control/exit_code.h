// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the command line tells its caller, and what every command of the daemon answers.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "ckpt/status.h"

namespace remusd::control {

/// Of the documents that the local API answers with.
inline constexpr int kSchemaVersion = 1;

/// The exit codes that operators' scripts rely on. Never renumber.
enum ExitCode : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,
  kUnprotected = 3,
  kNoSuchGuest = 4,
  kTimedOut = 5,
  kUnsafe = 6,
};

/// The answer to one command. `unprotected` marks the one failure that Code does not know: the command needs
/// a protected guest and this one is not.
struct Reply {
  Status status;
  bool unprotected = false;
  nlohmann::json body = nlohmann::json::object();  // of a success

  Reply() = default;
  Reply(Status failure) : status(std::move(failure)) {}        // NOLINT(google-explicit-constructor)
  Reply(nlohmann::json success) : body(std::move(success)) {}  // NOLINT(google-explicit-constructor)
  /// Of a dry run.
  static Reply would(const std::string& what) {
    return nlohmann::json{{"schema_version", kSchemaVersion}, {"dry_run", true}, {"would", what}};
  }
  static Reply not_protected(std::string message) {
    Reply reply(Status(Code::invalid, std::move(message)));
    reply.unprotected = true;
    return reply;
  }
};

/// The word for it in the local API: a Code's name, or "unprotected".
inline std::string_view api_code(const Reply& reply) {
  return reply.unprotected ? std::string_view("unprotected") : to_string(reply.status.code());
}

/// The exit code for the local API's word.
inline ExitCode exit_code(std::string_view word) {
  if (word == "ok") return kDone;
  if (word == "invalid") return kUsage;
  if (word == "unprotected") return kUnprotected;
  if (word == "not_found") return kNoSuchGuest;
  if (word == "timed_out") return kTimedOut;
  if (word == "unsafe") return kUnsafe;
  return kFailed;
}
inline ExitCode exit_code(const Status& status) {
  return exit_code(to_string(status.code()));
}

}  // namespace remusd::control
