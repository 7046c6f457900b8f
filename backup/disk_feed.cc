// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "backup/disk_feed.h"

#include <thread>
#include <utility>

namespace remusd::backup {
namespace {

constexpr Duration kLook = std::chrono::milliseconds(1);

size_t bytes_of(const std::vector<ckpt::Bytes>& bodies) {
  size_t bytes = 0;
  for (const ckpt::Bytes& body : bodies) bytes += body.size();
  return bytes;
}

}  // namespace

void DiskFeed::sync(ckpt::Bytes body) {
  std::vector<ckpt::Bytes> bodies;
  bodies.push_back(std::move(body));
  push({0, std::move(bodies)});
}

void DiskFeed::commit(uint64_t epoch, std::vector<ckpt::Bytes> bodies) {
  push({epoch, std::move(bodies)});
}

void DiskFeed::push(Item item) {
  waiting_bytes_ += bytes_of(item.bodies);
  waiting_.push_back(std::move(item));
  pump();
}

void DiskFeed::pump() {
  while (!waiting_.empty() && !replica_.over_limit()) {
    Item& item = waiting_.front();
    const size_t bytes = bytes_of(item.bodies);
    const Status status = item.epoch == 0 ? replica_.sync(std::move(item.bodies.front()))
                                          : replica_.commit(item.epoch, std::move(item.bodies), generation_);
    // A failure is the replica's, which its owner looks at; it takes nothing any more.
    if (!status.ok()) return;
    waiting_bytes_ -= bytes;
    waiting_.pop_front();
  }
}

Status DiskFeed::wait_for_room(Time deadline) {
  pump();
  while (behind() && replica_.failure().ok() && Clock::now() < deadline) {
    std::this_thread::sleep_for(kLook);
    pump();
  }
  if (waiting_bytes_ <= kMostTimes * replica_.limit_bytes()) return {};
  return {Code::exhausted, "the first sync comes faster than the disks here take it, and " +
                               std::to_string(waiting_bytes_) +
                               " bytes wait; lower disk_sync_mib_s on the primary"};
}

}  // namespace remusd::backup
