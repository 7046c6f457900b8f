// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/qmp.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "guest/json_fields.h"

namespace remusd::guest::qemu {
namespace {

using nlohmann::json;

constexpr size_t kFirstBufferBytes = 16384;
// The lines that come with every epoch, recognized without a parser. QEMU's own spelling; any other spelling
// only takes the slower way.
constexpr std::string_view kTrivialAnswer = R"({"return": {}})";
constexpr std::string_view kEventStart = R"({"timestamp": {)";
constexpr std::string_view kStopEvent = R"("event": "STOP"})";
constexpr std::array<std::string_view, 2> kEpochEvents{kStopEvent, R"("event": "RESUME"})"};
constexpr std::array<std::string_view, 3> kGuestEvents{"RESET", "SHUTDOWN", "GUEST_PANICKED"};

/// Waits for `events`; false at the deadline.
Result<bool> wait_for(int fd, short events, Time deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30)));
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return Status::from_errno("poll a QMP socket");
  }
}

bool is_epoch_event(std::string_view line) {
  return line.starts_with(kEventStart) &&
         std::any_of(kEpochEvents.begin(), kEpochEvents.end(), [&](auto end) { return line.ends_with(end); });
}

std::string shown(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 80)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out;
}

bool offers_oob(const json& greeting) {
  const json& qmp = greeting["QMP"];
  if (!qmp.is_object() || !qmp.contains("capabilities")) return false;
  const json& offered = qmp["capabilities"];
  return offered.is_array() && std::find(offered.begin(), offered.end(), "oob") != offered.end();
}

}  // namespace

std::string text_member(const json& object, const char* key) {
  if (!object.is_object()) return {};
  const auto member = object.find(key);
  return member != object.end() && member->is_string() ? member->get<std::string>() : std::string();
}

Qmp::Qmp(ScopedFd socket, std::string path, Duration timeout)
    : socket_(std::move(socket)), path_(std::move(path)), timeout_(timeout), buffer_(kFirstBufferBytes) {}

Result<ScopedFd> Qmp::open_socket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return Status(Code::invalid, "QMP socket path '" + path + "' is longer than 107 bytes");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  ScopedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Status::from_errno("make a socket for QMP");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    const int error = errno;
    if (error == EAGAIN) {
      return Status(Code::unavailable, "QMP socket '" + path + "' is busy: somebody else is connected to it");
    }
    if (error == ECONNREFUSED)
      return Status(Code::unavailable, "no QEMU listens on QMP socket '" + path + "'");
    return Status::from_errno("connect to QMP socket '" + path + "'", error);
  }
  return socket;
}

Result<std::unique_ptr<Qmp>> Qmp::connect(const std::string& path, Duration timeout, Duration first) {
  REMUSD_ASSIGN(ScopedFd socket, open_socket(path));
  return adopt(std::move(socket), path, timeout, first);
}

Result<std::unique_ptr<Qmp>> Qmp::adopt(ScopedFd socket, const std::string& path, Duration timeout,
                                        Duration first) {
  std::unique_ptr<Qmp> qmp(new Qmp(std::move(socket), path, timeout));
  REMUSD_TRY(qmp->negotiate(first));
  return qmp;
}

Status Qmp::reconnect() {
  socket_.reset();  // QEMU serves one connection at a time.
  begin_ = end_ = scanned_ = 0;
  stops_ = 0;
  parses_ahead_ = false;
  watch({});
  auto socket = open_socket(path_);
  if (socket.ok()) socket_ = *std::move(socket);
  broken_ = socket.status();
  if (broken_.ok()) broken_ = negotiate_again();
  return broken_;
}

/// QEMU sends the answer to what it was asked before to whoever is connected when it is done: all is skipped
/// up to the greeting, and then up to the answer that is named as ours.
Status Qmp::negotiate_again() {
  constexpr std::string_view kOurs = "remusd";
  const Time deadline = Clock::now() + timeout_;
  const auto await = [&](auto wanted) -> Result<json> {
    for (;;) {
      REMUSD_ASSIGN(const std::string_view line, next_line(deadline));
      json value = json::parse(line, nullptr, false);
      if (!value.is_object()) return fail(Code::corrupt, "'" + shown(line) + "' is not QMP");
      if (wanted(value)) return value;
    }
  };
  REMUSD_ASSIGN(const json greeting, await([](const json& value) { return value.contains("QMP"); }));
  json request{{"execute", "qmp_capabilities"}, {"id", kOurs}};
  parses_ahead_ = offers_oob(greeting);
  if (parses_ahead_) request["arguments"] = {{"enable", {"oob"}}};
  REMUSD_TRY(write(request.dump()));
  REMUSD_ASSIGN(const json answer,
                await([&](const json& value) { return text_member(value, "id") == kOurs; }));
  return answer.contains("error") ? error_status(answer["error"]) : Status();
}

Status Qmp::negotiate(Duration first) {
  const Time deadline = Clock::now() + first;
  REMUSD_ASSIGN(const std::string_view line, next_line(deadline));
  const json greeting = parse_json(line);
  if (!greeting.is_object() || !greeting.contains("QMP") || !greeting["QMP"].is_object()) {
    return fail(Code::corrupt, "the other side does not greet as QMP does, but says '" + shown(line) + "'");
  }
  json arguments;
  parses_ahead_ = offers_oob(greeting);
  if (parses_ahead_) arguments = {{"enable", {"oob"}}};
  const Duration usual = timeout_;
  timeout_ = std::max<Duration>(deadline - Clock::now(), std::chrono::milliseconds(1));
  const auto answer = call("qmp_capabilities", arguments);
  timeout_ = usual;
  return answer.status();
}

Result<json> Qmp::call(const char* command, const json& arguments, int fd) {
  json request{{"execute", command}};
  if (!arguments.is_null()) request["arguments"] = arguments;
  REMUSD_TRY(write(request.dump(-1, ' ', false, json::error_handler_t::replace), fd));
  auto answer = await_answer(Clock::now() + timeout_);
  if (!answer.ok()) return answer.status().with_context(std::string("QMP ") + command);
  return answer;
}

Status Qmp::write(std::string_view bytes, int fd) {
  REMUSD_TRY(broken_);
  const Time deadline = Clock::now() + timeout_;
  while (!bytes.empty()) {
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    if (fd >= 0) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(header), &fd, sizeof(int));
    }
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
      fd = -1;
      continue;
    }
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return fail(Code::unavailable, "QEMU closed the monitor");
    REMUSD_ASSIGN(const bool ready, wait_for(socket_.get(), POLLOUT, deadline));
    if (!ready) return fail(Code::timed_out, "QEMU does not read its monitor");
  }
  return {};
}

Status Qmp::await_ok() {
  return await_answer(Clock::now() + timeout_).status();
}

bool Qmp::line_is_here() const {
  const auto end = buffer_.begin() + static_cast<std::ptrdiff_t>(end_);
  return std::find(buffer_.begin() + static_cast<std::ptrdiff_t>(scanned_), end, '\n') != end;
}

Result<bool> Qmp::await_either(int fd, Time deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    std::array<pollfd, 2> entries{{{socket_.get(), POLLIN, 0}, {fd, POLLIN, 0}}};
    const int ready =
        ::poll(entries.data(), entries.size(), static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30)));
    if (ready > 0) return entries[0].revents != 0;
    if (ready == 0) return fail(Code::timed_out, "QEMU does not answer in time");
    if (errno != EINTR) return Status::from_errno("poll a QMP socket");
  }
}

Status Qmp::await_stop(int fd, Until until) {
  REMUSD_TRY(broken_);
  const Time deadline = Clock::now() + timeout_;
  for (;;) {
    while (line_is_here()) {
      REMUSD_ASSIGN(const std::string_view text, next_line(deadline));
      const int before = stops_;
      REMUSD_ASSIGN(const Line line, classify(text));
      if (line.kind == Kind::error) return error_status(line.value);
      if (line.kind == Kind::answer) return {Code::io, "QEMU saved the guest's devices without stopping it"};
      if (until == Until::stop_event && stops_ > before) return {};
    }
    REMUSD_ASSIGN(const bool of_qemu, await_either(fd, deadline));
    if (!of_qemu) return {};
    REMUSD_TRY(fill(deadline));
  }
}

Status Qmp::await_ok(int fd, const std::function<Status()>& take) {
  REMUSD_TRY(broken_);
  const Time deadline = Clock::now() + timeout_;
  for (;;) {
    while (line_is_here()) {
      REMUSD_ASSIGN(const std::string_view text, next_line(deadline));
      REMUSD_ASSIGN(const Line line, classify(text));
      if (line.kind == Kind::error) return error_status(line.value);
      if (line.kind == Kind::answer) return {};
    }
    REMUSD_ASSIGN(const bool of_qemu, await_either(fd, deadline));
    REMUSD_TRY(of_qemu ? fill(deadline) : take());
  }
}

Result<json> Qmp::await_answer(Time deadline) {
  REMUSD_TRY(broken_);
  for (;;) {
    REMUSD_ASSIGN(const std::string_view text, next_line(deadline));
    REMUSD_ASSIGN(Line line, classify(text));
    if (line.kind == Kind::answer) return std::move(line.value);
    if (line.kind == Kind::error) return error_status(line.value);
  }
}

Status Qmp::drain() {
  REMUSD_TRY(broken_);
  for (;;) {
    REMUSD_ASSIGN(const bool ready, wait_for(socket_.get(), POLLIN, Time{}));
    if (!ready && !line_is_here()) return {};  // At most a part of a line is left.
    REMUSD_ASSIGN(const std::string_view text, next_line(Clock::now() + timeout_));
    REMUSD_ASSIGN(const Line line, classify(text));
    if (line.kind != Kind::event) return fail(Code::corrupt, "an answer came that nobody asked for");
  }
}

void Qmp::watch(std::string name) {
  watched_ = std::move(name);
  seen_.clear();
}

Result<QmpEvent> Qmp::await_watched(Time deadline) {
  REMUSD_ASSERT(!watched_.empty(), "an event is watched");
  REMUSD_TRY(broken_);
  while (seen_.empty()) {
    REMUSD_ASSIGN(const std::string_view text, next_line(deadline));
    REMUSD_ASSIGN(const Line line, classify(text));
    if (line.kind != Kind::event) return fail(Code::corrupt, "an answer came that nobody asked for");
  }
  QmpEvent event = std::move(seen_.front());
  seen_.pop_front();
  return event;
}

std::vector<QmpEvent> Qmp::take_events() {
  std::vector<QmpEvent> events(std::make_move_iterator(events_.begin()),
                               std::make_move_iterator(events_.end()));
  events_.clear();
  return events;
}

Result<int> Qmp::peer_pid() const {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return Status::from_errno("ask who is behind QMP socket '" + path_ + "'");
  }
  return static_cast<int>(peer.pid);
}

Status Qmp::fail(Code code, const std::string& why) {
  broken_ = Status(code, "QMP socket '" + path_ + "': " + why);
  return broken_;
}

Status Qmp::error_status(const json& error) const {
  const std::string kind = text_member(error, "class"), desc = text_member(error, "desc");
  const std::string& why = desc.empty() ? kind : desc;
  return {kind == "CommandNotFound" ? Code::unsupported : Code::io, "QEMU refuses: " + why};
}

Result<std::string_view> Qmp::next_line(Time deadline) {
  REMUSD_TRY(broken_);
  for (;;) {
    const auto first = buffer_.begin() + static_cast<std::ptrdiff_t>(scanned_);
    const auto last = buffer_.begin() + static_cast<std::ptrdiff_t>(end_);
    const auto found = std::find(first, last, '\n');
    if (found == last) {
      scanned_ = end_;
      REMUSD_TRY(fill(deadline));
      continue;
    }
    std::string_view line(buffer_.data() + begin_, static_cast<size_t>(found - buffer_.begin()) - begin_);
    begin_ = scanned_ = static_cast<size_t>(found - buffer_.begin()) + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) return line;
  }
}

Status Qmp::fill(Time deadline) {
  if (begin_ == end_) {
    begin_ = end_ = scanned_ = 0;
  } else if (end_ == buffer_.size() && begin_ > 0) {
    std::copy(buffer_.begin() + begin_, buffer_.begin() + end_, buffer_.begin());
    end_ -= begin_;
    scanned_ -= begin_;
    begin_ = 0;
  }
  if (end_ == buffer_.size()) {
    if (buffer_.size() >= kMaxLineBytes) {
      return fail(Code::corrupt, "a line longer than " + std::to_string(kMaxLineBytes) + " bytes");
    }
    buffer_.resize(std::min(buffer_.size() * 4, kMaxLineBytes));
  }
  for (;;) {
    const ssize_t got = ::recv(socket_.get(), buffer_.data() + end_, buffer_.size() - end_, MSG_DONTWAIT);
    if (got > 0) {
      end_ += static_cast<size_t>(got);
      return {};
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      return fail(Code::unavailable, "QEMU closed the monitor");
    }
    if (errno == EINTR) continue;
    REMUSD_ASSIGN(const bool ready, wait_for(socket_.get(), POLLIN, deadline));
    if (!ready) return fail(Code::timed_out, "QEMU does not answer in time");
  }
}

Result<Qmp::Line> Qmp::classify(std::string_view line) {
  if (line == kTrivialAnswer) return Line{Kind::answer, json::object()};
  if (is_epoch_event(line)) {
    stops_ += line.ends_with(kStopEvent) ? 1 : 0;
    if (watched_.empty()) return Line{Kind::event, {}};
  }
  json value = parse_json(line);
  if (value.is_object()) {
    if (value.contains("return")) return Line{Kind::answer, std::move(value["return"])};
    if (value.contains("error") && value["error"].is_object())
      return Line{Kind::error, std::move(value["error"])};
    if (value.contains("event") && value["event"].is_string()) {
      take_event(std::move(value));
      return Line{Kind::event, {}};
    }
  }
  return fail(Code::corrupt, "'" + shown(line) + "' is not QMP");
}

void Qmp::take_event(json value) {
  QmpEvent event{value["event"].get<std::string>(),
                 value.contains("data") ? std::move(value["data"]) : json()};
  const bool of_guest = std::find(kGuestEvents.begin(), kGuestEvents.end(), event.name) != kGuestEvents.end();
  const auto keep = [&event](std::deque<QmpEvent>* queue) {
    if (queue->size() == kMaxEvents) queue->pop_front();
    queue->push_back(event);
  };
  if (!watched_.empty() && event.name == watched_) keep(&seen_);
  if (of_guest && keep_events_) keep(&events_);
}

}  // namespace remusd::guest::qemu
