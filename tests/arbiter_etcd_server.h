// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Real etcd servers on loopback for tests: one, or three members, with data in a temporary directory. They
// end with their object, and with this process however it ends.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "arbiter/etcd_codec.h"
#include "arbiter/etcd_connection.h"
#include "ckpt/scoped_fd.h"
#include "tests/temporary_directory.h"

namespace remusd::arbiter {

inline constexpr const char* kEtcdProgram = "/usr/bin/etcd";

// At the start of a test that needs etcd.
#define REMUSD_NEEDS_ETCD() \
  if (::access(kEtcdProgram, X_OK) != 0) GTEST_SKIP() << kEtcdProgram << " is missing (package etcd-server)"

/// A socket that listens on a free loopback port.
inline ScopedFd listen_anywhere(uint16_t* port) {
  ScopedFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(listener.get(), any, length), 0);
  EXPECT_EQ(::listen(listener.get(), 16), 0);
  EXPECT_EQ(::getsockname(listener.get(), any, &length), 0);
  *port = ntohs(address.sin_port);
  return listener;
}

/// One process. What it writes is read by a thread, so that it never waits for us.
class EtcdProcess {
 public:
  explicit EtcdProcess(std::vector<std::string> arguments) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    ScopedFd write_end(ends[1]);
    output_ = ScopedFd(ends[0]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::dup2(ends[1], STDOUT_FILENO);
      ::dup2(ends[1], STDERR_FILENO);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    reader_ = std::thread([this] { read_output(); });
  }
  ~EtcdProcess() {
    kill();
    reader_.join();
  }
  /// Until it hears its peers. Members that are started before wait 2 s for each other's first words.
  void wait_peers_heard() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(5), [this] { return hears_peers_ || ready_ || ended_; });
  }
  /// False when it ended before, or said nothing of the kind in 20 s.
  bool wait_ready() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [this] { return ready_ || ended_; });
    return ready_;
  }
  void signal(int number) {
    if (pid_ > 0) ::kill(pid_, number);
  }
  /// Returns when it stands still, which takes a moment.
  void pause() {
    signal(SIGSTOP);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    EXPECT_TRUE(WIFSTOPPED(status));
  }
  void kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  void read_output() {
    std::string text;
    char buffer[4096];
    while (true) {
      const ssize_t got = ::read(output_.get(), buffer, sizeof(buffer));
      if (got < 0 && errno == EINTR) continue;
      const std::lock_guard lock(mutex_);
      if (got <= 0) ended_ = true;
      if (got > 0 && !ready_) text.append(buffer, static_cast<size_t>(got));
      if (text.find("ready to serve client requests") != std::string::npos) ready_ = true;
      const auto said = [&](const char* words) { return text.find(words) != std::string::npos; };
      // In the words of etcd 3.4 and of 3.5.
      if (said("listening for peers on") || said("serving peer traffic")) hears_peers_ = true;
      changed_.notify_all();
      if (ended_) return;
    }
  }

  pid_t pid_ = -1;
  ScopedFd output_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hears_peers_ = false, ready_ = false, ended_ = false;  // guarded by mutex_
  std::thread reader_;
};

class EtcdCluster {
 public:
  /// `tls`: further arguments for each member, that make it serve https.
  explicit EtcdCluster(size_t count, std::vector<std::string> tls = {}) : tls_(std::move(tls)) {
    for (int tries = 0; tries < 3 && !running_; ++tries) start(count);  // A free port may be taken meanwhile.
    EXPECT_TRUE(running_) << "etcd does not start";
  }
  std::string endpoint(size_t member) const {
    return (tls_.empty() ? "http://127.0.0.1:" : "https://127.0.0.1:") + std::to_string(ports_[member]);
  }
  std::vector<std::string> endpoints() const {
    std::vector<std::string> all;
    for (size_t member = 0; member < members_.size(); ++member) all.push_back(endpoint(member));
    return all;
  }
  uint16_t port(size_t member) const { return ports_[member]; }
  void kill(size_t member) { members_[member]->kill(); }
  void pause(size_t member) { members_[member]->pause(); }
  void resume(size_t member) { members_[member]->signal(SIGCONT); }

  /// Asks a member that serves http; the body of its answer.
  Result<std::string> ask(size_t member, const char* target, const std::string& body) const {
    REMUSD_ASSIGN(const EtcdEndpoint where, parse_etcd_endpoint(endpoint(member)));
    EtcdConnection connection(where, nullptr);
    const Time limit = Clock::now() + std::chrono::seconds(10);
    REMUSD_TRY(connection.connect({{*where.address, where.port}}, limit));
    bool sent = false;
    return connection.post(target, body, limit, &sent);
  }
  /// The leader as `asked` sees it; there must be one soon.
  size_t leader(size_t asked = 0) const {
    const Time limit = Clock::now() + std::chrono::seconds(10);
    while (Clock::now() < limit) {
      const std::string wanted = status(asked).value("leader", "");
      for (size_t member = 0; member < members_.size() && !wanted.empty(); ++member) {
        if (status(member)["header"].value("member_id", "") == wanted) return member;
      }
    }
    ADD_FAILURE() << "there is no leader";
    return 0;
  }

 private:
  nlohmann::json status(size_t member) const {
    const auto body = ask(member, "/v3/maintenance/status", "{}");
    auto answer = body.ok() ? nlohmann::json::parse(*body, nullptr, false) : nlohmann::json();
    if (!answer.is_object()) answer = nlohmann::json::object();
    if (!answer.contains("header")) answer["header"] = nlohmann::json::object();
    return answer;
  }
  void start(size_t count) {
    members_.clear();
    directory_ = std::make_unique<TemporaryDirectory>();
    ports_.assign(count, 0);
    std::vector<uint16_t> peers(count);
    std::vector<ScopedFd> held;  // so that all are different
    for (size_t member = 0; member < count; ++member) {
      held.push_back(listen_anywhere(&ports_[member]));
      held.push_back(listen_anywhere(&peers[member]));
    }
    held.clear();
    const auto peer = [&](size_t member) { return "http://127.0.0.1:" + std::to_string(peers[member]); };
    std::string all;
    for (size_t member = 0; member < count; ++member) {
      all += (all.empty() ? "m" : ",m") + std::to_string(member) + "=" + peer(member);
    }
    for (size_t member = 0; member < count; ++member) {
      const std::string name = "m" + std::to_string(member);
      std::vector<std::string> arguments = {kEtcdProgram,
                                            "--name=" + name,
                                            "--data-dir=" + directory_->path() + "/" + name,
                                            "--listen-client-urls=" + endpoint(member),
                                            "--advertise-client-urls=" + endpoint(member),
                                            "--listen-peer-urls=" + peer(member),
                                            "--initial-advertise-peer-urls=" + peer(member),
                                            "--initial-cluster=" + all,
                                            "--heartbeat-interval=20",
                                            "--election-timeout=200",
                                            "--unsafe-no-fsync"};
      arguments.insert(arguments.end(), tls_.begin(), tls_.end());
      members_.push_back(std::make_unique<EtcdProcess>(std::move(arguments)));
      if (count > 1) members_.back()->wait_peers_heard();
    }
    running_ = true;
    for (const auto& member : members_) running_ = running_ && member->wait_ready();
  }

  const std::vector<std::string> tls_;
  std::unique_ptr<TemporaryDirectory> directory_;
  std::vector<uint16_t> ports_;
  std::vector<std::unique_ptr<EtcdProcess>> members_;
  bool running_ = false;
};

}  // namespace remusd::arbiter
