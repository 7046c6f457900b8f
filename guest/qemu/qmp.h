// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A blocking QMP client for one monitor socket. Every wait has a deadline and every line a bound: the other
// side is not trusted to answer, to end its lines or to speak JSON.
//
// QMP answers commands in the order in which they were sent, so answers carry no ids: QEMU reads its monitor
// byte by byte, and every byte of a command is time in the guest's pause. For the same reason a command may
// be sent ahead without its last byte (write()), to be set going later by that byte alone.
//
// Failures: `timed_out` (no answer in time), `unavailable` (closed), `corrupt` (not QMP, or a line beyond the
// bound). After one of these the order of answers is lost: every later call fails with the same status.
// An error that QEMU itself answers is `unsupported` (no such command) or `io`, and the client stays usable.
//
// Thread: one at a time; the owner locks.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"

namespace remusd::guest::qemu {

struct QmpEvent {
  std::string name;
  nlohmann::json data;
};

/// A string member of what may not even be an object; empty when it is absent or of another type.
std::string text_member(const nlohmann::json& object, const char* key);

class Qmp {
 public:
  static constexpr size_t kMaxLineBytes = size_t{1} << 20;
  static constexpr size_t kMaxEvents = 64;  // beyond it the oldest is dropped

  /// Connects to a monitor's unix socket and negotiates. `timeout` is for each later call, `first` for the
  /// greeting and the negotiation (QEMU may still be starting).
  static Result<std::unique_ptr<Qmp>> connect(const std::string& path, Duration timeout, Duration first);
  /// The same over a connected stream socket; `path` is its name in messages.
  static Result<std::unique_ptr<Qmp>> adopt(ScopedFd socket, const std::string& path, Duration timeout,
                                            Duration first);

  /// Connects again, whatever has happened; what was unread or half sent is forgotten. Waits for each answer
  /// as long as a call does. On failure it is broken.
  Status reconnect();

  /// Runs one command; `fd` >= 0 goes with it (SCM_RIGHTS). Returns the value of "return".
  Result<nlohmann::json> call(const char* command, const nlohmann::json& arguments = nullptr, int fd = -1);

  /// Sends bytes as they are: one or more commands, the last perhaps without its end.
  Status write(std::string_view bytes, int fd = -1);
  /// The answer to the oldest command that is not answered yet; its value is of no interest.
  Status await_ok();
  enum class Until { stop_event, readable };
  /// Waits for the STOP event that a command which is not answered yet causes (not Until::readable), or until
  /// `fd` can be read. An answer that comes before means that the command did something else: its error, or
  /// `io`.
  Status await_stop(int fd, Until until = Until::stop_event);
  /// The same for the answer; whenever `fd` can be read meanwhile, `take` is called, which must take
  /// something.
  Status await_ok(int fd, const std::function<Status()>& take);
  /// STOP events seen since the last call.
  int take_stops() { return std::exchange(stops_, 0); }

  /// Keeps events of this name for await_watched(); an empty name stops that. Forgets those kept before.
  void watch(std::string name);
  /// The next watched event, waiting until `deadline`.
  Result<QmpEvent> await_watched(Time deadline);

  /// Reads what has arrived without waiting. REQUIRES: no answer is outstanding.
  Status drain();
  /// Events of what the guest did by itself (RESET, SHUTDOWN, GUEST_PANICKED), oldest first.
  std::vector<QmpEvent> take_events();
  /// Keeps no guest events from now on: another monitor of the same QEMU does.
  void ignore_events() { keep_events_ = false; }

  /// Process at the other end, as the kernel knows it.
  Result<int> peer_pid() const;
  /// A partial command may be sent ahead: QEMU parses it while it runs others (capability oob).
  bool parses_ahead() const { return parses_ahead_; }
  void set_timeout(Duration timeout) { timeout_ = timeout; }
  const std::string& path() const { return path_; }
  /// Not ok: every later call fails with it.
  const Status& broken() const { return broken_; }

 private:
  enum class Kind { answer, error, event };
  struct Line {
    Kind kind = Kind::answer;
    nlohmann::json value;  // of an answer that is not {}; the error object
  };

  Qmp(ScopedFd socket, std::string path, Duration timeout);
  static Result<ScopedFd> open_socket(const std::string& path);
  Status negotiate(Duration first);
  Status negotiate_again();
  Status fail(Code code, const std::string& why);
  Status error_status(const nlohmann::json& error) const;
  Result<nlohmann::json> await_answer(Time deadline);
  /// The next line, read if need be until `deadline`; nullopt-like empty view never occurs.
  Result<std::string_view> next_line(Time deadline);
  Status fill(Time deadline);
  bool line_is_here() const;
  /// Waits for bytes of QEMU (true) or at `fd` (false).
  Result<bool> await_either(int fd, Time deadline);
  Result<Line> classify(std::string_view line);
  void take_event(nlohmann::json value);

  ScopedFd socket_;
  std::string path_;
  Duration timeout_;
  Status broken_;
  bool parses_ahead_ = false;
  int stops_ = 0;
  bool keep_events_ = true;
  std::vector<char> buffer_;  // [begin_, end_) is unread; [begin_, scanned_) has no line end
  size_t begin_ = 0, end_ = 0, scanned_ = 0;
  std::string watched_;
  std::deque<QmpEvent> seen_;
  std::deque<QmpEvent> events_;
};

}  // namespace remusd::guest::qemu
