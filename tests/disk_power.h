// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Files that can lose power. What is written is volatile until it is flushed; a cut loses any part of the
// rest, by the sector. Every write and flush of all files of one Power is counted, and one of them can be the
// last before the cut, or fail.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "disk/medium.h"

namespace remusd::disk {

class PowerMedium;

class Power {
 public:
  static constexpr uint64_t kNever = UINT64_MAX;

  std::shared_ptr<PowerMedium> add(const std::string& name, uint64_t bytes);
  /// From now on: the operation with this number (from 0) is cut off, nothing works after it.
  void cut_at(uint64_t operation) { set(&cut_at_, operation); }
  /// That operation, or so many from it on, fail with this errno value, and change something or nothing.
  void fail_at(uint64_t operation, int error, uint64_t count = 1) {
    const std::lock_guard lock(mutex_);
    fail_at_ = operation;
    fail_count_ = count;
    error_ = error;
    operations_ = 0;
  }
  uint64_t operations() const {
    const std::lock_guard lock(mutex_);
    return operations_;
  }
  /// Flushes of files with this name wait until it is nobody's.
  void hang_flushes_of(const std::string& name) {
    {
      const std::lock_guard lock(mutex_);
      hung_ = name;
    }
    let_go_.notify_all();
  }
  bool somebody_hangs() const {
    const std::lock_guard lock(mutex_);
    return hanging_ > 0;
  }
  bool off() const {
    const std::lock_guard lock(mutex_);
    return off_;
  }
  /// Power is lost (where it is not yet) and comes back.
  void cycle(uint32_t seed);

 private:
  friend class PowerMedium;
  enum class Fate { done, failed, last, cut };  // last: in its middle the power goes

  void set(uint64_t* what, uint64_t operation) {
    const std::lock_guard lock(mutex_);
    *what = operation;
    operations_ = 0;
  }
  Fate count() {
    if (off_) return Fate::cut;
    const uint64_t number = operations_++;
    if (number == cut_at_) {
      off_ = true;
      return Fate::last;
    }
    return number >= fail_at_ && number - fail_at_ < fail_count_ ? Fate::failed : Fate::done;
  }

  mutable std::mutex mutex_;
  std::condition_variable let_go_;
  std::vector<std::shared_ptr<PowerMedium>> files_;
  std::string hung_;
  int hanging_ = 0, error_ = 0;
  uint64_t operations_ = 0, cut_at_ = kNever, fail_at_ = kNever, fail_count_ = 1;
  bool off_ = false;
};

class PowerMedium final : public Medium {
 public:
  PowerMedium(Power* power, std::string name, uint64_t bytes)
      : power_(power), name_(std::move(name)), now_(bytes), durable_(bytes) {}

  uint64_t bytes() const override { return now_.size(); }
  Status read(uint64_t offset, std::span<std::byte> out) override {
    const std::lock_guard lock(power_->mutex_);
    REMUSD_ASSERT(offset + out.size() <= now_.size(), "reads lie within the file");
    if (power_->off_) return failed(0);
    std::copy_n(now_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }
  Status write(uint64_t offset, std::span<const std::byte> data) override {
    const std::lock_guard lock(power_->mutex_);
    REMUSD_ASSERT(offset + data.size() <= now_.size(), "writes lie within the file");
    const Power::Fate fate = power_->count();
    if (fate == Power::Fate::failed) {  // half of it
      put(offset, data.first(data.size() / 2));
      return failed(power_->error_);
    }
    if (fate != Power::Fate::cut) put(offset, data);
    return fate == Power::Fate::done ? Status() : failed(0);
  }
  Status zero(uint64_t offset, uint64_t bytes) override {
    return write(offset, std::vector<std::byte>(bytes));
  }
  Status punch(uint64_t offset, uint64_t bytes) override { return zero(offset, bytes); }
  Status flush() override {
    std::unique_lock lock(power_->mutex_);
    if (power_->hung_ == name_) {
      ++power_->hanging_;
      power_->let_go_.wait(lock, [this] { return power_->hung_ != name_; });
      --power_->hanging_;
    }
    const Power::Fate fate = power_->count();
    if (fate == Power::Fate::cut || fate == Power::Fate::last) return failed(0);
    if (fate == Power::Fate::failed) {
      pending_.clear();  // the kernel forgets what it could not write, and the next flush says nothing of it
      return failed(power_->error_);
    }
    for (const auto& [offset, data] : pending_)
      std::memcpy(durable_.data() + offset, data.data(), data.size());
    pending_.clear();
    return {};
  }
  Result<LocalFile::Run> next_data(uint64_t offset) override { return LocalFile::Run{offset, bytes()}; }

  std::vector<std::byte> content() const {
    const std::lock_guard lock(power_->mutex_);
    return now_;
  }
  /// A new file in its place, all zeros.
  void renew() {
    const std::lock_guard lock(power_->mutex_);
    pending_.clear();
    now_.assign(now_.size(), std::byte{0});
    durable_ = now_;
  }
  /// Behind everybody's back, durably.
  void set(uint64_t offset, std::span<const std::byte> data) {
    const std::lock_guard lock(power_->mutex_);
    std::memcpy(now_.data() + offset, data.data(), data.size());
    std::memcpy(durable_.data() + offset, data.data(), data.size());
  }

 private:
  friend class Power;
  static constexpr size_t kSectorBytes = 512;

  void put(uint64_t offset, std::span<const std::byte> data) {
    if (data.empty()) return;
    std::memcpy(now_.data() + offset, data.data(), data.size());
    pending_.emplace_back(offset, std::vector<std::byte>(data.begin(), data.end()));
  }
  Status failed(int error) const {
    return power_->off_ ? Status(Code::io, name_ + ": the power is off") : Status::from_errno(name_, error);
  }
  void cycle(std::mt19937& random) {
    for (const auto& [offset, data] : pending_) {
      const auto fate = random() % 3;  // lost, kept, or as each sector fares
      for (size_t at = 0; at < data.size();) {
        const size_t size = std::min(data.size() - at, kSectorBytes - (offset + at) % kSectorBytes);
        if (fate == 1 || (fate == 2 && random() % 2 == 0))
          std::memcpy(durable_.data() + offset + at, data.data() + at, size);
        at += size;
      }
    }
    pending_.clear();
    now_ = durable_;
  }

  Power* power_;
  const std::string name_;
  std::vector<std::byte> now_, durable_;
  std::vector<std::pair<uint64_t, std::vector<std::byte>>> pending_;
};

inline std::shared_ptr<PowerMedium> Power::add(const std::string& name, uint64_t bytes) {
  files_.push_back(std::make_shared<PowerMedium>(this, name, bytes));
  return files_.back();
}

inline void Power::cycle(uint32_t seed) {
  const std::lock_guard lock(mutex_);
  std::mt19937 random(seed);
  for (const auto& file : files_) file->cycle(random);
  off_ = false;
  operations_ = 0;
  cut_at_ = fail_at_ = kNever;
}

}  // namespace remusd::disk
