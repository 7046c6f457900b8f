// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The kernel resolves write-protect faults itself (WP_ASYNC) and PAGEMAP_SCAN returns the pages that lost
// their protection and restores it, page by page under the page-table lock and with the TLB flushed before it
// returns: a store is either before that, then its page is reported and copied later, or it faults and is
// reported next time.
#include <sys/ioctl.h>

#include <array>
#include <cerrno>

#include "guest/qemu/tracker_kinds.h"
#include "guest/qemu/uffd.h"

namespace remusd::guest::qemu {
namespace {

// The kernel gathers 512 regions (one page table's worth) before it hands them out. With a longer vector one
// call may go through that buffer several times, and when it then reaches the end, walk_end still says where
// the buffer was full last: the caller would scan that part twice and see pages again, out of order.
constexpr size_t kRegionsPerScan = 512;

class AsyncTracker final : public Tracker {
 public:
  AsyncTracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram)
      : uffd_(std::move(uffd)), pagemap_(std::move(pagemap)), ram_(ram) {}
  ~AsyncTracker() override {
    if (registered_) uffd_unregister(uffd_.get(), ram_);
  }

  Status plant() {
    REMUSD_TRY(uffd_register(uffd_.get(), ram_));
    registered_ = true;
    return uffd_protect_all(uffd_.get(), ram_);
  }

  Status collect(PageSet* dirty) override {
    dirty->clear();
    Status status = scan(dirty);
    // An address space that is gone scans as empty, so look afterwards whether there was one.
    if (status.ok() && !memory_lives(pagemap_.get(), ram_.address)) status = process_ended();
    if (!status.ok()) dirty->clear();
    return status;
  }

  std::string name() const override { return "async (userfaultfd WP_ASYNC + PAGEMAP_SCAN)"; }

 private:
  Status scan(PageSet* dirty) {
    PageScan order{};
    order.size = sizeof order;
    order.flags = kScanWpMatching | kScanCheckWpAsync;
    order.end = ram_.address + ram_.bytes;
    order.vec = reinterpret_cast<uint64_t>(regions_.data());
    order.vec_len = regions_.size();
    // Exactly these masks. With any other the kernel takes a slower path, which also overlooks pages that
    // were written and have since lost their table entry (reclaimed shared memory).
    order.category_mask = kPageIsWritten;
    order.return_mask = kPageIsWritten;
    for (uint64_t at = ram_.address; at < order.end; at = order.walk_end) {
      order.start = at;
      order.walk_end = at;
      const int found = ::ioctl(pagemap_.get(), kPagemapScan, &order);
      if (found < 0) {
        // Only a fatal signal interrupts it. EPERM: part of the range is not the mapping that was registered.
        if (errno == ESRCH || !memory_lives(pagemap_.get(), ram_.address)) return process_ended();
        return Status::from_errno("scan dirty pages");
      }
      for (int i = 0; i < found; ++i) {
        const PageRegion& region = regions_[static_cast<size_t>(i)];
        append_pages(dirty, (region.start - ram_.address) / kPageSize,
                     (region.end - region.start) / kPageSize);
      }
      REMUSD_ASSERT(order.walk_end > at && order.walk_end <= order.end, "PAGEMAP_SCAN makes progress");
    }
    return {};
  }

  const ScopedFd uffd_;
  const ScopedFd pagemap_;
  const TrackedRange ram_;
  bool registered_ = false;
  std::array<PageRegion, kRegionsPerScan> regions_{};
};

}  // namespace

bool has_pagemap_scan(int pagemap, uint64_t address) {
  PageScan order{};
  order.size = sizeof order;
  order.start = address;
  order.end = address + kPageSize;
  order.category_mask = kPageIsWritten;
  order.return_mask = kPageIsWritten;
  return ::ioctl(pagemap, kPagemapScan, &order) >= 0;
}

Result<std::unique_ptr<Tracker>> make_async_tracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram) {
  auto tracker = std::make_unique<AsyncTracker>(std::move(uffd), std::move(pagemap), ram);
  REMUSD_TRY(tracker->plant());
  return std::unique_ptr<Tracker>(std::move(tracker));
}

}  // namespace remusd::guest::qemu
