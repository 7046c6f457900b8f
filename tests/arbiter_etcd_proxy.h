// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A TCP proxy before an etcd that does what networks do to transactions, and a server that answers nonsense.
#pragma once

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/arbiter_etcd_server.h"

namespace remusd::arbiter {

/// Passes everything on, but for the first `count` transactions:
///   swallow_answer  they reach etcd and are carried out; the connection is closed instead of the answer
///   silence         as before, but the connection stays open without a word
///   hold_request    they wait, whatever the client does meanwhile, until release(), and reach etcd then
class UnreliableProxy {
 public:
  enum class Fault { swallow_answer, silence, hold_request };

  UnreliableProxy(uint16_t target, Fault fault, int count) : target_(target), fault_(fault), left_(count) {
    listener_ = listen_anywhere(&port_);
    EXPECT_EQ(::pipe2(stop_, O_CLOEXEC), 0);
    thread_ = std::thread([this] { serve(); });
  }
  ~UnreliableProxy() {
    release();
    ::close(stop_[1]);  // Every poll() wakes up.
    thread_.join();
    ::close(stop_[0]);
  }
  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port_); }
  /// Called once a transaction has been carried out, before its client hears of any fault. Set before use.
  void set_after_commit(std::function<void()> hook) { after_commit_ = std::move(hook); }
  /// Transactions that a fault met, and that etcd had answered then (or, when held: that wait).
  int met() const { return met_; }
  /// Lets held requests go on; returns when etcd has answered them.
  void release() {
    std::unique_lock lock(mutex_);
    released_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::seconds(10), [this] { return held_ == 0; });
  }

 private:
  static bool pass(int from, int to) {
    char buffer[65536];
    const ssize_t got = ::recv(from, buffer, sizeof(buffer), 0);
    return got > 0 && ::send(to, buffer, static_cast<size_t>(got), MSG_NOSIGNAL) == got;
  }
  /// False when it was told to stop.
  bool readable(int one, int other, bool* first, bool* second) {
    pollfd polled[3] = {{one, POLLIN, 0}, {stop_[0], POLLIN, 0}, {other, POLLIN, 0}};
    if (::poll(polled, 3, -1) < 0) return errno == EINTR;
    *first = polled[0].revents != 0;
    *second = polled[2].revents != 0;
    return polled[1].revents == 0;
  }
  void serve() {
    std::vector<std::thread> threads;
    bool ready = false, ignored = false;
    while (readable(listener_.get(), -1, &ready, &ignored)) {
      if (!ready) continue;
      const int client = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (client >= 0) threads.emplace_back([this, client] { relay(ScopedFd(client)); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  ScopedFd connect_target() const {
    ScopedFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(target_);
    EXPECT_EQ(::connect(server.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return server;
  }
  void relay(ScopedFd client) {
    const ScopedFd server = connect_target();
    bool from_client = false, from_server = false;
    while (readable(client.get(), server.get(), &from_client, &from_server)) {
      if (from_client) {
        char buffer[65536];
        const ssize_t got = ::recv(client.get(), buffer, sizeof(buffer), 0);
        if (got <= 0) return;
        const std::string text(buffer, static_cast<size_t>(got));
        if (text.find("POST /v3/kv/txn") != std::string::npos && left_-- > 0) {
          return spoil(text, client.get(), server.get());
        }
        if (::send(server.get(), text.data(), text.size(), MSG_NOSIGNAL) != got) return;
      }
      if (from_server && !pass(server.get(), client.get())) return;
    }
  }
  // The client sends a small request in one piece.
  void spoil(const std::string& request, int client, int server) {
    if (fault_ == Fault::hold_request) {
      std::unique_lock lock(mutex_);
      ++held_;
      ++met_;
      changed_.wait(lock, [this] { return released_; });
    }
    EXPECT_EQ(::send(server, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    char answer[65536];
    EXPECT_GT(::recv(server, answer, sizeof(answer), 0), 0);
    if (fault_ == Fault::hold_request) {
      const std::lock_guard lock(mutex_);
      --held_;
      changed_.notify_all();
      return;
    }
    ++met_;
    if (after_commit_) after_commit_();
    bool gone = false, ignored = false;
    while (fault_ == Fault::silence && !gone && readable(client, -1, &gone, &ignored)) {
    }
  }

  const uint16_t target_;
  const Fault fault_;
  std::function<void()> after_commit_;
  std::atomic<int> left_, met_ = 0;
  uint16_t port_ = 0;
  ScopedFd listener_;
  int stop_[2] = {-1, -1};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool released_ = false;  // guarded by mutex_
  int held_ = 0;           // guarded by mutex_
  std::thread thread_;
};

/// Answers every connection with the same bytes and closes it. Without bytes it never accepts: connections
/// wait.
class CannedServer {
 public:
  explicit CannedServer(std::string answer) : answer_(std::move(answer)) {
    listener_ = listen_anywhere(&port_);
    if (!answer_.empty()) thread_ = std::thread([this] { serve(); });
  }
  ~CannedServer() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
  }
  std::string endpoint() const { return "http://127.0.0.1:" + std::to_string(port_); }
  /// Of a server that never accepts: how many connections it was offered.
  int offered() const {
    int count = 0;
    EXPECT_EQ(::fcntl(listener_.get(), F_SETFL, O_NONBLOCK), 0);
    while (true) {
      const ScopedFd client(::accept(listener_.get(), nullptr, nullptr));
      if (!client) return count;
      ++count;
    }
  }

 private:
  void serve() {
    while (true) {
      const ScopedFd client(::accept(listener_.get(), nullptr, nullptr));
      if (!client) return;
      char request[65536];
      if (::recv(client.get(), request, sizeof(request), 0) <= 0) continue;
      (void)!::send(client.get(), answer_.data(), answer_.size(), MSG_NOSIGNAL);
      ::shutdown(client.get(), SHUT_WR);
      while (::recv(client.get(), request, sizeof(request), 0) > 0) {
      }
    }
  }

  const std::string answer_;
  uint16_t port_ = 0;
  ScopedFd listener_;
  std::thread thread_;
};

}  // namespace remusd::arbiter
