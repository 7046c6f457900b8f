// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "guest/guest.h"

namespace remusd::primary {

/// The simulated guest with events and failures that it does not have by itself.
class HookedGuest : public guest::Guest {
 public:
  explicit HookedGuest(std::unique_ptr<guest::Guest> real) : real_(std::move(real)) {}

  void happens(guest::EventKind kind) {
    const std::lock_guard lock(mutex_);
    events_.push_back({kind, "hooked"});
  }
  std::atomic<bool> pause_stalls{false}, save_stalls{false};
  std::atomic<int> bases{0}, resumes{0}, pauses{0}, prepared{0}, prepared_twice{0};

  const guest::Facts& facts() const override { return real_->facts(); }
  const std::vector<guest::NicEndpoint>& nics() const override { return real_->nics(); }
  std::span<const std::byte> memory() const override { return real_->memory(); }
  int pid() const override { return 0; }
  Status start_tracking() override { return real_->start_tracking(); }
  Status stop_tracking() override { return real_->stop_tracking(); }
  std::string tracker_name() const override { return real_->tracker_name(); }
  Status collect_dirty(PageSet* dirty) override { return real_->collect_dirty(dirty); }
  void assume_written(const PageSet& pages) override { real_->assume_written(pages); }
  void prepare_pause() override {
    ++prepared;
    if (std::exchange(ready_, true)) ++prepared_twice;
    real_->prepare_pause();
  }
  Status pause() override {
    ready_ = false;
    if (pause_stalls) return Status(Code::timed_out, "QMP stop: no answer within 5000 ms");
    ++pauses;
    return real_->pause();
  }
  Result<std::span<const std::byte>> save() override {
    if (save_stalls) return Status(Code::timed_out, "QMP save: no answer within 5000 ms");
    return real_->save();
  }
  Status resume() override {
    ++resumes;
    return real_->resume();
  }
  Result<std::vector<std::byte>> base_stream() override {
    ++bases;
    return real_->base_stream();
  }
  Status destroy() override { return real_->destroy(); }
  Status power_button() override { return real_->power_button(); }
  std::vector<guest::Event> take_events() override {
    const std::lock_guard lock(mutex_);
    auto events = real_->take_events();
    events.insert(events.end(), events_.begin(), events_.end());
    events_.clear();
    return events;
  }
  Status announce() override { return real_->announce(); }

 private:
  std::unique_ptr<guest::Guest> real_;
  bool ready_ = false;
  std::mutex mutex_;
  std::vector<guest::Event> events_;
};

}  // namespace remusd::primary
