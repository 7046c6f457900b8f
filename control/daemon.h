// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The composition root: arbiter, metrics, peers, local API and the guests of one node.
//
// Threads: the main thread runs one Asio loop; what may block (starting a guest, asking the arbiter, waiting
// for an end) runs on a small pool, one command at a time for each guest.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "control/guest_host.h"
#include "control/http_server.h"
#include "control/peer_listener.h"
#include "control/peer_tls.h"

namespace remusd::control {

inline constexpr size_t kMaxGuests = 64;

class Daemon {
 public:
  /// Opens everything; nothing runs yet.
  static Result<std::unique_ptr<Daemon>> open(Config config);
  ~Daemon();

  /// Serves until SIGTERM or SIGINT, then ends protections in order. Guests that have a process go on.
  void run();

  // What the endpoints ask for. On the loop.
  const Config& config() const { return config_; }
  bool stopping() const { return stopping_; }
  std::string metrics_text() { return metrics_.text(); }
  nlohmann::json list() const;
  /// A guest that is defined but never ran here is "stopped".
  Result<GuestStatus> status(const std::string& vm) const;
  /// Carries out start, stop, protect, unprotect, failover, switchover or bench-floor; `done` is called from
  /// the pool.
  void command(const std::string& vm, const std::string& verb, const nlohmann::json& arguments,
               std::function<void(Reply)> done);

 private:
  explicit Daemon(Config config);
  Status open_all();
  void inherit_guests();
  void await_reload();
  void command_start(const std::string& vm, const nlohmann::json& arguments, std::function<void(Reply)> done);
  std::shared_ptr<GuestHost> find(const std::string& vm) const;
  Result<std::shared_ptr<GuestHost>> find_or_make(const std::string& vm);
  void retired(GuestHost& host);
  void poll_guests();
  void feed_watchdog();
  void stop();
  void stop_hosts();

  const Config config_;
  boost::asio::io_context loop_;
  std::unique_ptr<arbiter::Arbiter> arbiter_;
  Metrics metrics_;
  Residues residues_;
  std::unique_ptr<PeerTls> tls_;
  boost::asio::thread_pool pool_;
  std::unique_ptr<HostContext> context_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<GuestHost>> hosts_;  // guarded by mutex_
  std::unique_ptr<PeerListener> peers_;
  std::unique_ptr<HttpServer> api_, web_;
  boost::asio::signal_set signals_, reload_;
  boost::asio::steady_timer poll_timer_, watchdog_timer_;
  bool stopping_ = false;
  bool clean_ = true;  // guarded by mutex_; every host could be shut down
};

}  // namespace remusd::control
