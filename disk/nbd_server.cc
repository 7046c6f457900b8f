// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/nbd_server.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstring>
#include <deque>
#include <future>
#include <thread>
#include <utility>

#include "ckpt/thread.h"
#include "disk/drive.h"
#include "disk/nbd_connection.h"
#include "disk/nbd_dispatcher.h"

namespace remusd::disk {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr int kBacklog = 16;
/// Jobs of each kind at once, over all connections.
constexpr size_t kJobs = 384;
constexpr size_t kKeptBytes = 32u << 20;  // of memory for content, while it is not used
/// How long the thread sleeps when nothing happens. The short one while jobs are under way, so that it looks
/// after them whatever becomes of the kernel's wake-up, and while a connection could not be accepted.
constexpr Duration kLongTurn = std::chrono::seconds(60), kShortTurn = std::chrono::milliseconds(100);

Result<ScopedFd> listen_on(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return Status(Code::invalid, "socket path '" + path + "' of a disk must have 1 to 107 characters");
  std::memcpy(address.sun_path, path.data(), path.size());
  ScopedFd listening(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!listening) return Status::from_errno("make a socket for disk connections");
  struct stat there {};
  if (::lstat(path.c_str(), &there) == 0 && S_ISSOCK(there.st_mode)) ::unlink(path.c_str());
  // The mode that bind() gives it is that of the descriptor: nobody else may connect, not even for a moment.
  if (::fchmod(listening.get(), 0600) != 0 ||
      ::bind(listening.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path.c_str(), 0600) != 0 || ::listen(listening.get(), kBacklog) != 0)
    return Status::from_errno("listen for disk connections on " + path);
  return listening;
}

}  // namespace

/// The thread's world. Public calls come from other threads, unless they say otherwise.
class Server::Loop final : public Connection::Owner {
 public:
  explicit Loop(ServerOptions options)
      : options_(std::move(options)),
        dispatcher_(options_.observer, [this] { return jobs_out() == 1; }),
        pool_(kKeptBytes) {}
  ~Loop() override;

  Status start();
  void wake(std::atomic<bool>* why);
  void retry() { wake(&retry_); }
  void doubt() { dispatcher_.doubt(); }
  bool drain(Time deadline) { return dispatcher_.drain(deadline); }
  DiskCounters counters(size_t disk) const;
  int thread_id() const { return thread_id_; }

 private:
  /// What requests of one kind may take, and the connections whose next request found too little.
  struct Room {
    size_t jobs = kJobs, bytes = 0;
    std::deque<Connection*> waiting;
    bool grew = false;
  };
  /// One disk's socket.
  struct Port {
    Port(Loop* owner, const ServedDisk& disk, ScopedFd socket)
        : loop(owner),
          served{disk.name, disk.file->bytes(), disk.read_only || disk.file->read_only()},
          path(disk.socket_path),
          listening(std::move(socket)),
          drive(*disk.file, &owner->ring_, &owner->dispatcher_) {}
    void accepted(int result) { loop->accepted(this, result); }
    void cancelled(int /*result*/) {}

    Loop* loop;
    nbd::Export served;
    std::string path;
    ScopedFd listening;
    Drive drive;
    DiskTally tally;
    bool accepting = false;
    size_t connections = 0;
    Calls<Port, &Port::accepted> accept{this};
    Calls<Port, &Port::cancelled> cancel{this};
  };

  // On the thread.
  void run(std::promise<Status>* started);
  Status begin();
  void turn();
  void stop();
  void woken(int result);
  void await_wake();
  void accept_more(Port* port);
  void accepted(Port* port, int result);
  void settle_touched();
  void settle(Connection* connection);
  void let_in(Room* room);
  void close(Connection* connection);
  Port& port_of(const Connection& connection);
  Room& room_of(const nbd::Request& request) { return request.changes() ? changes_room_ : reads_room_; }
  size_t jobs_out() const { return 2 * kJobs - changes_room_.jobs - reads_room_.jobs; }

  Job* admit(Connection* connection, const nbd::Request& request, size_t content) override;
  void release(Job* job) override;
  void carry_out(Job* job) override { dispatcher_.carry_out(job); }
  void refuse(Job* job, nbd::Error error) override { dispatcher_.refuse(job, error); }
  void touched(Connection* connection) override;

  const ServerOptions options_;
  OperationRing ring_;
  Dispatcher dispatcher_;
  ScopedFd event_;
  uint64_t event_count_ = 0;
  Calls<Loop, &Loop::woken> wake_operation_{this};
  bool stopping_ = false, accept_failed_ = false;
  std::vector<std::unique_ptr<Port>> ports_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> touched_;
  BufferPool pool_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::vector<Job*> free_jobs_;
  Room changes_room_, reads_room_;
  Room* letting_in_ = nullptr;  // the one whose first in line is being served

  std::atomic<bool> retry_ = false, stop_ = false;
  int thread_id_ = 0;  // since it has started
  std::thread thread_;
};

// ---- Other threads

Status Server::Loop::start() {
  if (options_.disks.empty() || options_.disks.size() > kMaxDisks)
    return {Code::invalid, "a guest with disks has 1 to " + std::to_string(kMaxDisks) + " of them"};
  if (std::min(options_.change_bytes, options_.read_bytes) < nbd::kMaxPayload)
    return {Code::invalid, "requests to disks need at least 32 MiB of room"};
  for (const ServedDisk& disk : options_.disks) {
    if (disk.file == nullptr || disk.name.size() > nbd::kMaxStringBytes)
      return {Code::invalid, "a served disk has a file, and a name of at most 4096 bytes"};
  }
  changes_room_.bytes = options_.change_bytes;
  reads_room_.bytes = options_.read_bytes;
  event_.reset(::eventfd(0, EFD_CLOEXEC));
  if (!event_) return Status::from_errno("make an eventfd");
  std::promise<Status> started;
  std::future<Status> answer = started.get_future();
  thread_ = std::thread([this, &started] { run(&started); });
  return answer.get();
}

Server::Loop::~Loop() {
  if (thread_.joinable()) {
    wake(&stop_);
    thread_.join();
  }
  for (const auto& port : ports_) ::unlink(port->path.c_str());
}

void Server::Loop::wake(std::atomic<bool>* why) {
  why->store(true);
  const uint64_t one = 1;
  (void)!::write(event_.get(), &one, sizeof one);
}

DiskCounters Server::Loop::counters(size_t disk) const {
  const DiskTally& tally = ports_[disk]->tally;
  const auto value = [](const std::atomic<uint64_t>& counter) { return counter.load(kRelaxed); };
  return {value(tally.reads),         value(tally.read_bytes), value(tally.writes),
          value(tally.written_bytes), value(tally.zeroes),     value(tally.zeroed_bytes),
          value(tally.flushes),       value(tally.errors),     value(tally.in_flight),
          value(tally.held),          value(tally.connections)};
}

// ---- The thread

void Server::Loop::run(std::promise<Status>* started) {
  thread_id_ = ::gettid();
  begin_thread("disk", Urgency::urgent);  // The guest waits for it, and in a pause so does the hypervisor.
  sigset_t gone;
  ::sigemptyset(&gone);
  ::sigaddset(&gone, SIGPIPE);  // A client that went away is told by the socket.
  ::pthread_sigmask(SIG_BLOCK, &gone, nullptr);
  Status status = begin();
  const bool serving = status.ok();
  started->set_value(std::move(status));
  while (serving && !stopping_) turn();
  if (serving) stop();
}

Status Server::Loop::begin() {
  REMUSD_TRY(ring_.open());
  for (const ServedDisk& disk : options_.disks) {
    REMUSD_ASSIGN(ScopedFd socket, listen_on(disk.socket_path));
    ports_.push_back(std::make_unique<Port>(this, disk, std::move(socket)));
    dispatcher_.add(&ports_.back()->drive);
  }
  for (const auto& port : ports_) accept_more(port.get());
  await_wake();
  return {};
}

void Server::Loop::turn() {
  const bool try_again = std::exchange(accept_failed_, false);
  ring_.wait(try_again || jobs_out() > 0 ? kShortTurn : kLongTurn);
  settle_touched();
  if (jobs_out() == 0)
    for (const auto& port : ports_) port->drive.sync_ahead();
  if (!try_again) return;
  for (const auto& port : ports_) accept_more(port.get());
}

void Server::Loop::stop() {
  for (const auto& port : ports_) {
    if (!port->accepting) continue;
    ring_.start(&port->cancel, [&](io_uring_sqe* entry) { io_uring_prep_cancel(entry, &port->accept, 0); });
  }
  for (const auto& connection : connections_) connection->end();
  dispatcher_.drop_held();
  settle_touched();
  while (ring_.waited_for() > 0) turn();
  REMUSD_ASSERT(connections_.empty() && dispatcher_.idle(), "nothing is left when nothing is under way");
}

void Server::Loop::await_wake() {
  ring_.start(&wake_operation_, [&](io_uring_sqe* entry) {
    io_uring_prep_read(entry, event_.get(), &event_count_, sizeof event_count_, 0);
  });
}

void Server::Loop::woken(int) {
  stopping_ = stop_.load();
  if (stopping_) return;
  await_wake();
  if (retry_.exchange(false)) dispatcher_.retry();
}

// ---- Connections

void Server::Loop::accept_more(Port* port) {
  if (stopping_ || port->accepting || port->connections >= kMaxConnections) return;
  port->accepting = true;
  ring_.start(&port->accept, [&](io_uring_sqe* entry) {
    io_uring_prep_accept(entry, port->listening.get(), nullptr, nullptr, SOCK_CLOEXEC);
  });
}

void Server::Loop::accepted(Port* port, int result) {
  port->accepting = false;
  ScopedFd socket(result >= 0 ? result : -1);
  if (stopping_) return;
  if (!socket) {
    // No descriptors or no memory, perhaps: later.
    accept_failed_ = true;
    return;
  }
  ++port->connections;
  connections_.push_back(std::make_unique<Connection>(std::move(socket), &port->drive, &port->tally,
                                                      port->served, kMaxRequests, &ring_, this));
  accept_more(port);
}

void Server::Loop::touched(Connection* connection) {
  if (std::exchange(connection->is_touched, true)) return;
  touched_.push_back(connection);
}

void Server::Loop::settle_touched() {
  do {
    for (size_t i = 0; i < touched_.size(); ++i) settle(touched_[i]);
    touched_.clear();
    let_in(&changes_room_);
    let_in(&reads_room_);
  } while (!touched_.empty());
}

/// REQUIRES: it is touched, so that it is not noted again meanwhile.
void Server::Loop::settle(Connection* connection) {
  connection->settle();
  connection->is_touched = false;
  if (connection->finished()) close(connection);
}

void Server::Loop::let_in(Room* room) {
  letting_in_ = room;
  while (std::exchange(room->grew, false) && !room->waiting.empty()) {
    Connection* first = room->waiting.front();
    room->waiting.pop_front();
    first->waits_for_room = false;
    // One that is in the list comes to it there.
    if (!std::exchange(first->is_touched, true)) settle(first);
    room->grew |= room->waiting.empty() || room->waiting.front() != first;
  }
  letting_in_ = nullptr;
}

void Server::Loop::close(Connection* connection) {
  Port& port = port_of(*connection);
  for (Room* room : {&changes_room_, &reads_room_}) std::erase(room->waiting, connection);
  std::erase_if(connections_, [&](const auto& one) { return one.get() == connection; });
  --port.connections;
  accept_more(&port);
}

Server::Loop::Port& Server::Loop::port_of(const Connection& connection) {
  const auto found =
      std::ranges::find_if(ports_, [&](const auto& port) { return &port->drive == connection.drive(); });
  return **found;
}

// ---- Jobs

Job* Server::Loop::admit(Connection* connection, const nbd::Request& request, size_t content) {
  Room& room = room_of(request);
  const size_t size = content > 0 ? BufferPool::size_for(content) : 0;
  const bool first = letting_in_ == &room;
  if ((!first && !room.waiting.empty()) || room.jobs == 0 || size > room.bytes) {
    connection->waits_for_room = true;
    if (first)
      room.waiting.push_front(connection);
    else
      room.waiting.push_back(connection);
    return nullptr;
  }
  --room.jobs;
  room.bytes -= size;
  if (free_jobs_.empty()) {
    jobs_.push_back(std::make_unique<Job>());
    free_jobs_.push_back(jobs_.back().get());
  }
  Job* job = free_jobs_.back();
  free_jobs_.pop_back();
  job->connection = connection;
  job->drive = connection->drive();
  job->request = request;
  job->done = job->reply_bytes = 0;
  job->in_pipe = false;
  if (content > 0) job->content = pool_.take(content);
  connection->tally().in_flight.fetch_add(1, kRelaxed);
  return job;
}

void Server::Loop::release(Job* job) {
  Room& room = room_of(job->request);
  ++room.jobs;
  room.bytes += job->content.size;
  room.grew = true;
  pool_.give(std::exchange(job->content, {}));
  job->kept.reset();
  job->connection->tally().in_flight.fetch_sub(1, kRelaxed);
  free_jobs_.push_back(job);
}

// ---- The handle

Server::Server(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::start(ServerOptions options) {
  auto loop = std::make_unique<Loop>(std::move(options));
  REMUSD_TRY(loop->start());
  return std::unique_ptr<Server>(new Server(std::move(loop)));
}

void Server::retry() {
  loop_->retry();
}
void Server::doubt() {
  loop_->doubt();
}
bool Server::drain(Time deadline) {
  return loop_->drain(deadline);
}
DiskCounters Server::counters(size_t disk) const {
  return loop_->counters(disk);
}

int Server::thread() const {
  return loop_->thread_id();
}

}  // namespace remusd::disk
