// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "control/peer_listener.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "control/address.h"
#include "control/driver_options.h"
#include "control/guest_disks.h"
#include "control/log.h"
#include "control/toml_reader.h"

namespace remusd::control {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr std::chrono::milliseconds kListenRetry{100};

backup::Options session_options(const Config& config) {
  backup::Options options;
  options.node = config.node;
  options.heartbeat_interval = std::chrono::milliseconds(config.heartbeat_ms);
  options.heartbeat_lost = config.heartbeat_lost;
  options.arbiter_timeout = config.arbiter_timeout();
  options.driver = driver_options(config);
  options.net.limit_bytes = static_cast<size_t>(config.packet_buffer_mib) << 20;
  options.files_dir = config.state_dir + "/files";
  options.disk_limit_bytes = static_cast<uint64_t>(config.disk_buffer_mib) << 20;
  options.journals_dir = journals_dir(config);
  options.may_hold = [config](const std::string& peer) -> Status {
    const auto fence = config.fences.find(peer);
    if (config.hold_without_fence || (fence != config.fences.end() && !fence->second.command.empty()))
      return {};
    return {Code::unsafe,
            "node " + config.node + " has no fence agent for node " + peer +
                ": a write of its to a held disk could reach the shared storage after this node "
                "took over; set 'fence' in [peer." +
                peer +
                "] there, or hold_without_fence where "
                "the storage itself keeps a host out"};
  };
  const bool any = std::any_of(config.fences.begin(), config.fences.end(),
                               [](const auto& fence) { return !fence.second.command.empty(); });
  if (!any) return options;
  options.fence = [fences = config.fences](const std::string& peer, const std::stop_token& stop) {
    const auto fence = fences.find(peer);
    if (fence == fences.end() || fence->second.command.empty()) return Status();
    log(LogLevel::warn, {}, "fencing node '" + peer + "' by " + fence->second.command);
    const Status status = run_fence_agent(fence->second, peer, stop);
    log(status.ok() ? LogLevel::warn : LogLevel::error, {},
        status.ok() ? "node '" + peer + "' is fenced" : status.message());
    return status;
  };
  return options;
}

}  // namespace

PeerListener::PeerListener(asio::io_context& loop, const asio::any_io_executor& pool, const Config& config,
                           arbiter::Arbiter& arbiter, const PeerTls& tls, FindHost find_host)
    : config_(config),
      arbiter_(arbiter),
      tls_(tls),
      find_host_(std::move(find_host)),
      acceptor_(loop),
      retry_(loop),
      strand_(asio::make_strand(pool)) {}

Result<std::unique_ptr<PeerListener>> PeerListener::start(asio::io_context& loop,
                                                          const asio::any_io_executor& pool,
                                                          const Config& config, arbiter::Arbiter& arbiter,
                                                          const PeerTls& tls, FindHost find_host) {
  std::unique_ptr<PeerListener> listener(
      new PeerListener(loop, pool, config, arbiter, tls, std::move(find_host)));
  if (config.listen.empty()) return listener;
  REMUSD_ASSIGN(listener->acceptor_, listen_on(loop, config.listen, "listen for peers"));
  listener->accept();
  return listener;
}

void PeerListener::accept() {
  acceptor_.async_accept([this](boost::system::error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
    if (error) {
      log(LogLevel::warn, {}, "accept a peer: " + error.message());
      retry_.expires_after(kListenRetry);
      retry_.async_wait([this](boost::system::error_code cancelled) {
        if (!cancelled) accept();
      });
      return;
    }
    take(std::move(socket));
    accept();
  });
}

void PeerListener::take(tcp::socket socket) {
  boost::system::error_code error;
  const tcp::endpoint from = socket.remote_endpoint(error);
  const uint64_t id = next_id_++;
  {
    const std::lock_guard lock(mutex_);
    const auto pending = std::count_if(entries_.begin(), entries_.end(),
                                       [](const auto& entry) { return entry.second.host == nullptr; });
    if (static_cast<size_t>(pending) >= kMaxPendingSessions || entries_.size() >= kMaxSessions) {
      log(LogLevel::warn, {},
          "closed a connection from " + from.address().to_string() + ": too many sessions");
      return;
    }
    entries_[id].slot = std::make_shared<SessionSlot>(id);
  }
  log(LogLevel::info, {}, "a peer connected from " + from.address().to_string());
  const int fd = socket.release(error);
  asio::post(strand_, [this, fd, id, from = from.address().to_string() + ":" + std::to_string(from.port())] {
    begin(fd, id, from);
  });
}

void PeerListener::begin(int fd, uint64_t id, const std::string& from) {
  ScopedFd owned(fd);
  std::shared_ptr<SessionSlot> slot;
  {
    const std::lock_guard lock(mutex_);
    slot = entries_.at(id).slot;
  }
  backup::Options options = session_options(config_);
  options.from = from;
  const auto tls = tls_.context();
  if (tls.ok()) options.tls = *tls;
  auto session = tls.ok() ? backup::Session::start(std::move(owned), arbiter_, options, callbacks(slot))
                          : Result<std::unique_ptr<backup::Session>>(tls.status());
  if (!session.ok()) {
    log(LogLevel::warn, {}, "session with a peer: " + session.status().message());
    const std::lock_guard lock(mutex_);
    entries_.erase(id);
    return;
  }
  slot->put(*std::move(session));
}

backup::Callbacks PeerListener::callbacks(const std::shared_ptr<SessionSlot>& slot) {
  // They run on the session's thread, and the session is gone before this listener and the hosts are.
  backup::Callbacks callbacks;
  callbacks.admit = [this, slot](const std::string& vm, const std::string& peer, uint64_t) {
    return admit(slot, vm, peer);
  };
  callbacks.on_state = [this, slot](const backup::Snapshot& snapshot) {
    const bool news = snapshot.state != slot->last().state;
    slot->set_last(snapshot);
    if (const auto host = host_of(slot->id)) {
      host->session_changed();
      const int pid = snapshot.state == backup::State::syncing ? snapshot.standby_pid : 0;
      if (news && pid > 0) asio::post(host->strand(), [host, pid] { host->standby_started(pid); });
    }
    if (news) {
      std::string message = "session: " + std::string(backup::to_string(snapshot.state));
      if (!snapshot.end.message().empty()) message += ": " + snapshot.end.message();
      const bool bad = !snapshot.end.ok() || snapshot.state == backup::State::frozen;
      log(bad ? LogLevel::warn : LogLevel::info, {snapshot.vm, snapshot.generation, snapshot.acked}, message);
    }
    if (news && is_final(snapshot.state)) asio::post(strand_, [this, id = slot->id] { reap(id); });
  };
  callbacks.take_residue = [this, slot](const std::string& vm) {
    const auto host = host_of(slot->id);
    return host != nullptr ? host->residues().take(vm) : guest::Residue();
  };
  callbacks.leave_residue = [this, slot](const std::string& vm, guest::Residue residue) {
    if (const auto host = host_of(slot->id)) host->residues().put(vm, std::move(residue), Clock::now());
  };
  callbacks.on_promoted = [this, slot](backup::Promoted promoted) {
    const std::shared_ptr<GuestHost> host = host_of(slot->id);
    REMUSD_ASSERT(host != nullptr, "only an admitted session promotes");
    auto shared = std::make_shared<backup::Promoted>(std::move(promoted));
    asio::post(host->strand(), [host, slot, shared] { host->adopt(*slot, shared); });
  };
  callbacks.on_arbiter_request = [this, slot](Duration took) {
    if (const auto host = host_of(slot->id)) host->on_arbiter_request(took);
  };
  return callbacks;
}

Status PeerListener::admit(const std::shared_ptr<SessionSlot>& slot, const std::string& vm,
                           const std::string& peer) {
  if (!is_name(vm) || !is_name(peer)) return {Code::invalid, "a guest's or node's name is not well-formed"};
  if (peer == config_.node) return {Code::invalid, "node '" + peer + "' cannot be its own backup"};
  REMUSD_ASSIGN(const std::shared_ptr<GuestHost> host, find_host_(vm));
  REMUSD_TRY(host->admit(slot, peer));
  const std::lock_guard lock(mutex_);
  entries_.at(slot->id).host = host;
  return {};
}

std::shared_ptr<GuestHost> PeerListener::host_of(uint64_t id) const {
  const std::lock_guard lock(mutex_);
  const auto entry = entries_.find(id);
  return entry == entries_.end() ? nullptr : entry->second.host;
}

// On the strand, after the session's last word.
void PeerListener::reap(uint64_t id) {
  Entry entry;
  {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) return;
    entry = found->second;
  }
  entry.slot->take().reset();  // joins
  {
    const std::lock_guard lock(mutex_);
    entries_.erase(id);
  }
  if (entry.host == nullptr) return;
  asio::post(entry.host->strand(), [entry] { entry.host->session_ended(*entry.slot); });
}

void PeerListener::stop(std::function<void()> done) {
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  retry_.cancel();
  asio::post(strand_, [this, done = std::move(done)] {
    std::vector<std::shared_ptr<SessionSlot>> slots;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [id, entry] : entries_) slots.push_back(entry.slot);
    }
    for (const auto& slot : slots) {
      if (const auto session = slot->session()) {
        session->end("the daemon of node '" + config_.node + "' is being stopped");
      }
      reap(slot->id);
    }
    done();
  });
}

}  // namespace remusd::control
