// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The kernel resolves write-protect faults itself (WP_ASYNC) and PAGEMAP_SCAN returns the pages that lost
// their protection and restores it, page by page under the page-table lock and with the TLB flushed before it
// returns: a store is either before that, then its page is reported and copied later, or it faults and is
// reported next time.
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>

#include "ckpt/crew.h"
#include "guest/qemu/tracker_kinds.h"
#include "guest/qemu/uffd.h"

namespace remusd::guest::qemu {
namespace {

// The kernel gathers 512 regions (one page table's worth) before it hands them out. With a longer vector one
// call may go through that buffer several times, and when it then reaches the end, walk_end still says where
// the buffer was full last: the caller would scan that part twice and see pages again, out of order.
constexpr size_t kRegionsPerScan = 512;

// A scan costs some 0.35 ms/GiB. Large guests are scanned by several threads, each a part of so much at
// least.
constexpr uint64_t kPartBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxParts = 4;

size_t parts_for(uint64_t bytes) {
  const uint64_t processors = std::max(1u, std::thread::hardware_concurrency());
  return std::clamp<uint64_t>(bytes / kPartBytes, 1, std::min(kMaxParts, processors));
}

class AsyncTracker final : public Tracker {
 public:
  AsyncTracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram)
      : uffd_(std::move(uffd)),
        pagemap_(std::move(pagemap)),
        ram_(ram),
        parts_(parts_for(ram.bytes)),
        crew_(parts_.size() - 1, "scan") {
    // Parts end at page tables (2 MiB), so that no two threads work on the same one.
    const uint64_t step = ram.bytes / parts_.size() & ~((uint64_t{2} << 20) - 1);
    for (size_t i = 0; i < parts_.size(); ++i) {
      parts_[i].begin = ram.address + i * step;
      parts_[i].end = i + 1 < parts_.size() ? parts_[i].begin + step : ram.address + ram.bytes;
    }
  }
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
    crew_.run(parts_.size(), [this](size_t i) { parts_[i].status = scan(&parts_[i]); });
    Status status;
    for (Part& part : parts_) {
      if (status.ok()) status = std::move(part.status);
      for (const PageRange& range : part.dirty) append_pages(dirty, range.first, range.count);
    }
    // An address space that is gone scans as empty, so look afterwards whether there was one.
    if (status.ok() && !memory_lives(pagemap_.get(), ram_.address)) status = process_ended();
    if (!status.ok()) dirty->clear();
    return status;
  }

  void assume_written(const PageSet& pages) override { assumed_ = pages; }

  std::string name() const override { return "async (userfaultfd WP_ASYNC + PAGEMAP_SCAN)"; }

 private:
  struct Part {
    uint64_t begin = 0, end = 0;
    PageSet dirty;
    Status status;
    std::array<PageRegion, kRegionsPerScan> regions{};
  };

  /// What is assumed cuts the part in pieces.
  Status scan(Part* part) {
    part->dirty.clear();
    uint64_t at = part->begin;
    for (const PageRange& range : assumed_) {
      const uint64_t first = std::max(ram_.address + range.first * kPageSize, part->begin);
      const uint64_t end = std::min(ram_.address + (range.first + range.count) * kPageSize, part->end);
      if (first >= end) continue;
      REMUSD_TRY(scan(part, at, first));
      append_pages(&part->dirty, (first - ram_.address) / kPageSize, (end - first) / kPageSize);
      at = end;
    }
    return scan(part, at, part->end);
  }

  Status scan(Part* part, uint64_t begin, uint64_t end) {
    PageScan order{};
    order.size = sizeof order;
    order.flags = kScanWpMatching | kScanCheckWpAsync;
    order.end = end;
    order.vec = reinterpret_cast<uint64_t>(part->regions.data());
    order.vec_len = part->regions.size();
    // Exactly these masks. With any other the kernel takes a slower path, which also overlooks pages that
    // were written and have since lost their table entry (reclaimed shared memory).
    order.category_mask = kPageIsWritten;
    order.return_mask = kPageIsWritten;
    for (uint64_t at = begin; at < order.end; at = order.walk_end) {
      order.start = at;
      order.walk_end = at;
      const int found = ::ioctl(pagemap_.get(), kPagemapScan, &order);
      if (found < 0) {
        // Only a fatal signal interrupts it. EPERM: part of the range is not the mapping that was registered.
        if (errno == ESRCH || !memory_lives(pagemap_.get(), ram_.address)) return process_ended();
        return Status::from_errno("scan dirty pages");
      }
      for (int i = 0; i < found; ++i) {
        const PageRegion& region = part->regions[static_cast<size_t>(i)];
        append_pages(&part->dirty, (region.start - ram_.address) / kPageSize,
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
  PageSet assumed_;
  std::vector<Part> parts_;
  Crew crew_;
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
