// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A served disk for tests: a file in a folder of its own, an observer that keeps a record, and ways to make
// the file slow or bad under the server.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "disk/nbd_server.h"
#include "tests/disk_nbd_client.h"
#include "tests/temporary_directory.h"

namespace remusd::disk {

/// Notes what it is told of.
class Recorder final : public Observer {
 public:
  struct Told {
    Change change;
    Bytes data;
  };

  bool changing(const Change& change, std::span<const std::byte> data) override {
    const std::lock_guard lock(lock_);
    if (room_ == 0) {
      ++refused_;
      return false;
    }
    --room_;
    told_.push_back({change, Bytes(data.begin(), data.end())});
    return true;
  }
  void changed(const Change& change, int error) override {
    const std::lock_guard lock(lock_);
    if (error != 0) failed_.push_back(change.sequence);
    changed_.push_back(change.sequence);
  }
  bool flush_held() override {
    const std::lock_guard lock(lock_);
    return flushes_held_;
  }
  bool flush_may_wait() override {
    const std::lock_guard lock(lock_);
    return flushes_wait_;
  }
  void flushed_later(int error) override {
    const std::lock_guard lock(lock_);
    flushed_.push_back(error);
  }

  void give_room(size_t changes) { set(&room_, changes); }
  void hold_flushes(bool hold) { set(&flushes_held_, hold); }
  std::vector<uint64_t> changed() const { return get(changed_); }
  std::vector<uint64_t> failed() const { return get(failed_); }  // of them
  void let_flushes_wait() { set(&flushes_wait_, true); }
  size_t refused() const { return get(refused_); }
  std::vector<Told> told() const { return get(told_); }
  std::vector<int> flushed() const { return get(flushed_); }

 private:
  template <typename T>
  void set(T* field, T value) {
    const std::lock_guard lock(lock_);
    *field = value;
  }
  template <typename T>
  T get(const T& field) const {
    const std::lock_guard lock(lock_);
    return field;
  }

  mutable std::mutex lock_;
  size_t room_ = SIZE_MAX, refused_ = 0;
  bool flushes_wait_ = false, flushes_held_ = false;
  std::vector<uint64_t> changed_, failed_;
  std::vector<Told> told_;
  std::vector<int> flushed_;
};

/// While it lives the disk's descriptor leads somewhere else: the file is not what the server thinks.
class Diverted {
 public:
  Diverted(const LocalFile& file, int to) : fd_(file.fd()), saved_(::dup(file.fd())) {
    EXPECT_EQ(::dup2(to, fd_), fd_);
  }
  ~Diverted() { EXPECT_EQ(::dup2(saved_.get(), fd_), fd_); }
  Diverted(const Diverted&) = delete;
  Diverted& operator=(const Diverted&) = delete;

 private:
  int fd_;
  ScopedFd saved_;
};

/// A pipe without room: what is written to it waits until open() is called. It cannot be flushed.
class FullPipe {
 public:
  FullPipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    out_.reset(ends[0]);
    in_.reset(ends[1]);
    ::fcntl(in_.get(), F_SETFL, O_NONBLOCK);
    const Bytes filler(4096);
    while (::write(in_.get(), filler.data(), filler.size()) > 0) {
    }
    ::fcntl(in_.get(), F_SETFL, 0);
    ::fcntl(out_.get(), F_SETFL, O_NONBLOCK);
  }
  int fd() const { return in_.get(); }
  void open() {
    Bytes waste(64 << 10);
    while (::read(out_.get(), waste.data(), waste.size()) > 0) {
    }
  }

 private:
  ScopedFd out_, in_;
};

class Served : public testing::Test {
 protected:
  static constexpr uint64_t kBytes = 64 << 20;

  /// With one disk, "disk0".
  void serve(Observer* observer = nullptr, bool read_only = false, size_t change_bytes = 64 << 20) {
    if (!file_) {
      std::ofstream(path()).close();
      std::filesystem::resize_file(path(), kBytes);
      auto file = LocalFile::open(path());
      ASSERT_TRUE(file.ok()) << file.status().message();
      file_.emplace(*std::move(file));
    }
    ServerOptions options;
    options.disks.push_back({"disk0", socket(), &*file_, read_only});
    options.observer = observer;
    options.change_bytes = change_bytes;
    auto server = Server::start(std::move(options));
    ASSERT_TRUE(server.ok()) << server.status().message();
    server_ = *std::move(server);
  }
  std::unique_ptr<NbdClient> connect(bool structured = false) {
    auto client = std::make_unique<NbdClient>(socket());
    EXPECT_TRUE(client->enter("", structured));
    return client;
  }
  DiskCounters counters() const { return server_->counters(0); }
  std::string path() const { return folder_.path() + "/disk"; }
  std::string socket() const { return folder_.path() + "/socket"; }
  Bytes on_disk(uint64_t offset, size_t bytes) const {
    Bytes got(bytes);
    EXPECT_TRUE(file_->read(offset, got).ok());
    return got;
  }

  TemporaryDirectory folder_;
  Recorder recorder_;  // outlives the server
  std::optional<LocalFile> file_;
  std::unique_ptr<Server> server_;
};

}  // namespace remusd::disk
