// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The kernel resolves write-protect faults itself (WP_ASYNC) and PAGEMAP_SCAN returns the pages that lost
// their protection and restores it, page by page under the page-table lock and with the TLB flushed before it
// returns: a store is either before that, then its page is reported and copied later, or it faults and is
// reported next time. Where to ask for that is found out beforehand by a scan that restores nothing: a page
// that is written after it, elsewhere, has no protection still and is found the next time.
//
// Memory that never held a page is not scanned, which would cost more than other memory: the memory file
// tells when it holds one.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <thread>
#include <utility>
#include <vector>

#include "ckpt/crew.h"
#include "guest/qemu/tracker_kinds.h"
#include "guest/qemu/uffd.h"
#include "guest/residue.h"

namespace remusd::guest::qemu {
namespace {

// The kernel gathers 512 regions (one page table's worth) before it hands them out. With a longer vector one
// call may go through that buffer several times, and when it then reaches the end, walk_end still says where
// the buffer was full last: the caller would scan that part twice and see pages again, out of order.
constexpr size_t kRegionsPerScan = 512;

// Of the memory file. As much as a page table has, though QEMU's mapping need not begin where one does.
constexpr uint64_t kRegionBytes = uint64_t{2} << 20;

// A scan costs some 0.4 ms/GiB. Large guests are scanned by several threads, each so much at least.
constexpr uint64_t kPartBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxParts = 4;

size_t parts_for(uint64_t bytes) {
  const uint64_t processors = std::max(1u, std::thread::hardware_concurrency());
  return std::clamp<uint64_t>(bytes / kPartBytes, 1, std::min(kMaxParts, processors));
}

class AsyncTracker final : public Tracker {
 public:
  AsyncTracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram, int memory)
      : uffd_(std::move(uffd)),
        pagemap_(std::move(pagemap)),
        ram_(ram),
        memory_(memory),
        touched_((ram.bytes + kRegionBytes - 1) / kRegionBytes, memory < 0),
        parts_(parts_for(ram.bytes)),
        crew_(parts_.size() - 1, "scan") {}
  ~AsyncTracker() override {
    if (registered_) uffd_unregister(uffd_.get(), ram_);
  }

  Status plant() {
    REMUSD_TRY(uffd_register(uffd_.get(), ram_));
    registered_ = true;
    if (memory_ < 0) return uffd_protect_all(uffd_.get(), ram_);
    PageSet populated;
    REMUSD_TRY(guest::populated_pages(memory_, 0, ram_.bytes, &populated));
    for (const PageRange& range : populated) touch(range);
    for (size_t at = 0; at < touched_.size();) {
      const size_t end = end_of_run(at, touched_.size());
      if (touched_[at] != 0) REMUSD_TRY(uffd_protect_all(uffd_.get(), regions(at, end)));
      at = end;
    }
    return {};
  }

  Status collect(PageSet* dirty) override {
    dirty->clear();
    const size_t parts = divide();
    crew_.run(parts, [this](size_t i) { parts_[i].status = take(&parts_[i]); });
    Status status;
    for (size_t i = 0; i < parts; ++i) {
      if (status.ok()) status = std::move(parts_[i].status);
      for (const PageRange& range : parts_[i].dirty) append_pages(dirty, range.first, range.count);
    }
    // An address space that is gone scans as empty or fails, so look afterwards whether there was one.
    if (!memory_lives(pagemap_.get(), ram_.address)) status = process_ended();
    if (!status.ok()) dirty->clear();
    return status;
  }

  void assume_written(const PageSet& pages) override { assumed_ = pages; }

  std::string name() const override { return "async (userfaultfd WP_ASYNC + PAGEMAP_SCAN)"; }

 private:
  struct Part {
    size_t first = 0, end = 0;      // regions
    size_t assumed = 0, armed = 0;  // the first that is not passed, of assumed_ and of `found`
    PageSet found, dirty, fresh;
    Status status;
    std::array<PageRegion, kRegionsPerScan> regions{};
  };

  TrackedRange regions(size_t first, size_t end) const {
    const uint64_t begin = first * kRegionBytes;
    return {ram_.address + begin, std::min(end * kRegionBytes, ram_.bytes) - begin};
  }
  /// Of regions alike from `first`, at most to `limit`.
  size_t end_of_run(size_t first, size_t limit) const {
    const auto begin = touched_.begin() + static_cast<ptrdiff_t>(first);
    const auto end = touched_.begin() + static_cast<ptrdiff_t>(limit);
    return limit - static_cast<size_t>(end - std::find(begin, end, touched_[first] == 0 ? 1 : 0));
  }
  void touch(const PageRange& pages) {
    for (size_t at = pages.first * kPageSize / kRegionBytes;
         at * kRegionBytes < (pages.first + pages.count) * kPageSize; ++at)
      touched_[at] = 1;
  }

  /// Gives each part as much to scan; returns how many there are. Where two parts meet they share a page
  /// table at most, whose lock the kernel takes.
  size_t divide() {
    const auto all = static_cast<uint64_t>(std::count(touched_.begin(), touched_.end(), 1));
    const size_t parts = std::clamp<size_t>(all * kRegionBytes / kPartBytes, 1, parts_.size());
    size_t at = 0;
    uint64_t passed = 0;
    for (size_t i = 0; i < parts; ++i) {
      parts_[i].first = at;
      while (at < touched_.size() && passed < all * (i + 1) / parts) passed += touched_[at++];
      if (i + 1 == parts) at = touched_.size();
      parts_[i].end = at;
    }
    return parts;
  }

  /// Looks first, and then arms what it found. Each page table in which a page is armed costs a flush of
  /// translations on all processors where the process runs, and waiting for them. In a pause QEMU soon runs
  /// on none: it waits for us to copy what this returns. To look takes long enough for most of that.
  Status take(Part* part) {
    part->found.clear();
    part->dirty.clear();
    part->assumed = part->armed = 0;
    for (size_t at = part->first, end = at; at < part->end; at = end) {
      end = end_of_run(at, part->end);
      const TrackedRange range = regions(at, end);
      if (touched_[at] != 0)
        REMUSD_TRY(scan(part, 0, range.address, range.address + range.bytes, &part->found));
    }
    for (size_t at = part->first, end = at; at < part->end; at = end) {
      end = end_of_run(at, part->end);
      REMUSD_TRY(touched_[at] != 0 ? arm(part, regions(at, end)) : look(part, at, end));
    }
    return {};
  }

  /// What the file holds in untouched regions was written, or read for the first time, which is taken for it.
  /// Armed before it is looked at: what comes later is noticed like all else.
  Status look(Part* part, size_t first, size_t end) {
    while (first < end) {
      const off_t data = ::lseek(memory_, static_cast<off_t>(first * kRegionBytes), SEEK_DATA);
      if (data < 0 && errno != ENXIO) return Status::from_errno("look for data in the guest's RAM file");
      if (data < 0 || static_cast<uint64_t>(data) / kRegionBytes >= end) return {};
      first = static_cast<uint64_t>(data) / kRegionBytes;
      const TrackedRange region = regions(first, first + 1);
      REMUSD_TRY(uffd_protect_all(uffd_.get(), region));
      const uint64_t begin = region.address - ram_.address;
      REMUSD_TRY(guest::populated_pages(memory_, begin, begin + region.bytes, &part->fresh));
      for (const PageRange& range : part->fresh) append_pages(&part->dirty, range.first, range.count);
      touched_[first++] = 1;
    }
    return {};
  }

  /// What is assumed is not armed.
  Status arm(Part* part, TrackedRange touched) {
    uint64_t at = touched.address;
    const uint64_t last = touched.address + touched.bytes;
    for (; part->assumed < assumed_.size(); ++part->assumed) {
      const TrackedRange range = bytes_of(assumed_[part->assumed], ram_);
      const uint64_t first = std::max(range.address, at), end = std::min(range.address + range.bytes, last);
      if (range.address >= last) break;
      if (first < end) {
        REMUSD_TRY(arm(part, at, first));
        append_pages(&part->dirty, (first - ram_.address) / kPageSize, (end - first) / kPageSize);
        at = end;
      }
      if (range.address + range.bytes > last) break;  // It goes on in the next range.
    }
    return arm(part, at, last);
  }

  /// What was found in the range. Less than kRegionBytes between two finds are asked of again: that costs
  /// less than another call.
  Status arm(Part* part, uint64_t begin, uint64_t end) {
    uint64_t from = begin, to = begin;
    for (; part->armed < part->found.size(); ++part->armed) {
      const TrackedRange range = bytes_of(part->found[part->armed], ram_);
      const uint64_t first = std::max(range.address, begin), last = range.address + range.bytes;
      if (range.address >= end) break;
      if (first < last) {
        if (from < to && first - to >= kRegionBytes)
          REMUSD_TRY(scan(part, kScanWpMatching, std::exchange(from, first), to, &part->dirty));
        if (from == to) from = first;
        to = std::min(last, end);
      }
      if (last > end) break;  // It goes on behind what is assumed.
    }
    return from < to ? scan(part, kScanWpMatching, from, to, &part->dirty) : Status();
  }

  Status scan(Part* part, uint64_t flags, uint64_t begin, uint64_t end, PageSet* written) {
    PageScan order{};
    order.size = sizeof order;
    order.flags = flags | kScanCheckWpAsync;
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
      // Only a fatal signal interrupts it. EPERM: part of the range is not the mapping that was registered.
      if (found < 0) return Status::from_errno("scan dirty pages");
      for (int i = 0; i < found; ++i) {
        const PageRegion& region = part->regions[static_cast<size_t>(i)];
        append_pages(written, (region.start - ram_.address) / kPageSize,
                     (region.end - region.start) / kPageSize);
      }
      REMUSD_ASSERT(order.walk_end > at && order.walk_end <= order.end, "PAGEMAP_SCAN makes progress");
    }
    return {};
  }

  const ScopedFd uffd_;
  const ScopedFd pagemap_;
  const TrackedRange ram_;
  const int memory_;
  bool registered_ = false;
  std::vector<uint8_t> touched_;  // regions
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

Result<std::unique_ptr<Tracker>> make_async_tracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram,
                                                    int memory) {
  auto tracker = std::make_unique<AsyncTracker>(std::move(uffd), std::move(pagemap), ram, memory);
  REMUSD_TRY(tracker->plant());
  return std::unique_ptr<Tracker>(std::move(tracker));
}

}  // namespace remusd::guest::qemu
