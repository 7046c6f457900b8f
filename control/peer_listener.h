// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Accepts peers and keeps their backup sessions until they have ended. Bounded: so many sessions that have
// not yet told which guest they are about, and so many in all; beyond that a connection is closed at once.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "arbiter/arbiter.h"
#include "control/config.h"
#include "control/guest_host.h"

namespace remusd::control {

inline constexpr size_t kMaxPendingSessions = 8;
inline constexpr size_t kMaxSessions = 64;

class PeerListener {
 public:
  /// The host that a session about `vm` belongs to, made when there is none. Any thread.
  using FindHost = std::function<Result<std::shared_ptr<GuestHost>>(const std::string& vm)>;

  /// Listens on the configured address; an empty one listens to nobody. `pool` runs what may block.
  static Result<std::unique_ptr<PeerListener>> start(boost::asio::io_context& loop,
                                                     const boost::asio::any_io_executor& pool,
                                                     const Config& config, arbiter::Arbiter& arbiter,
                                                     const PeerTls& tls, FindHost find_host);
  /// On the loop: takes nobody any more, and ends the sessions. `done` is called from the pool.
  void stop(std::function<void()> done);

 private:
  struct Entry {
    std::shared_ptr<SessionSlot> slot;
    std::shared_ptr<GuestHost> host;  // once admitted
  };

  PeerListener(boost::asio::io_context& loop, const boost::asio::any_io_executor& pool, const Config& config,
               arbiter::Arbiter& arbiter, const PeerTls& tls, FindHost find_host);
  void accept();
  void take(boost::asio::ip::tcp::socket socket);
  void begin(int fd, uint64_t id, const std::string& from);
  backup::Callbacks callbacks(const std::shared_ptr<SessionSlot>& slot);
  Status admit(const std::shared_ptr<SessionSlot>& slot, const std::string& vm, const std::string& peer);
  std::shared_ptr<GuestHost> host_of(uint64_t id) const;
  void reap(uint64_t id);

  const Config& config_;
  arbiter::Arbiter& arbiter_;
  const PeerTls& tls_;
  FindHost find_host_;
  boost::asio::ip::tcp::acceptor acceptor_;
  boost::asio::steady_timer retry_;
  boost::asio::strand<boost::asio::any_io_executor> strand_;  // sessions are made and dropped here
  uint64_t next_id_ = 1;                                      // the loop's own
  mutable std::mutex mutex_;
  std::map<uint64_t, Entry> entries_;  // guarded by mutex_
};

}  // namespace remusd::control
