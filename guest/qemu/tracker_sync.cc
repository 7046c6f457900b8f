// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Write-protect faults answered by a thread of ours, which keeps the bitmap of dirty pages.
//
// Why no store is lost, also while the guest runs. One lock covers both "set the bit, lift the protection" of
// the fault thread and "take the bits, protect again" of collect(). Hence whenever the lock is free
//
//     a page is writable  =>  its bit is set                                              (*)
//
// A store to page p can only complete while p is writable. Let collect() hold the lock from T1 to T2:
//  * a store before T1: by (*) the bit is set at T1, p is reported, and the caller copies p after T2;
//  * a store between T1 and T2: p was writable at T1 (the fault thread cannot lift anything meanwhile), so p
//  is
//    reported, too, and copied after T2. UFFDIO_WRITEPROTECT returns with TLBs flushed, so no CPU stores
//    later through an old entry;
//  * a store after T2 faults, and the bit is set before it completes: the next collect() reports p.
// Without the lock there are losing orders: bit set, bit taken, protected again, and only then the first
// protection lifted leaves p writable without a bit; lifting before setting lets another thread store, stop,
// and be missed by a collect() that comes before the bit is set.
//
// The kernel keeps the protection of pages that it reclaims or whose holes are punched (markers), and a page
// that is writable stays accounted for by its bit, whatever becomes of its table entry.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <mutex>
#include <thread>
#include <vector>

#include "ckpt/thread.h"
#include "guest/qemu/tracker_kinds.h"
#include "guest/qemu/uffd.h"

namespace remusd::guest::qemu {
namespace {

constexpr size_t kMessagesPerRead = 64;
// Dirty runs that lie this close are protected by one call: pages between are protected anyway, and walking
// them costs less than another call with its TLB flush on all CPUs.
constexpr uint64_t kGapPages = 8;

class SyncTracker final : public Tracker {
 public:
  SyncTracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram)
      : uffd_(std::move(uffd)),
        pagemap_(std::move(pagemap)),
        ram_(ram),
        bitmap_((ram.bytes / kPageSize + 63) / 64) {}

  ~SyncTracker() override {
    // First, so that no fault comes any more: it wakes who waits, and then the thread runs dry and stops.
    // Whoever slipped through is woken when the descriptor is closed.
    if (registered_) uffd_unregister(uffd_.get(), ram_);
    if (thread_.joinable()) {
      const uint64_t one = 1;
      const ssize_t written = ::write(stop_.get(), &one, sizeof one);
      REMUSD_ASSERT(written == static_cast<ssize_t>(sizeof one), "an eventfd takes a one");
      thread_.join();
    }
  }

  Status plant() {
    stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!stop_) return Status::from_errno("make an eventfd");
    REMUSD_TRY(uffd_register(uffd_.get(), ram_));
    registered_ = true;
    thread_ = std::thread([this] { serve_faults(); });  // before the first page is protected
    return uffd_protect_all(uffd_.get(), ram_);
  }

  Status collect(PageSet* dirty) override {
    dirty->clear();
    Status status;
    {
      const std::lock_guard lock(mutex_);
      set_bits(assumed_);
      take_bits(dirty);
      subtract_pages(*dirty, assumed_, &armed_);
      status = protect_again(armed_);
      set_bits(status.ok() ? assumed_ : *dirty);
    }
    if (status.ok() && !memory_lives(pagemap_.get(), ram_.address)) status = process_ended();
    if (!status.ok()) dirty->clear();
    return status;
  }

  void assume_written(const PageSet& pages) override {
    const std::lock_guard lock(mutex_);
    assumed_ = pages;
  }

  std::string name() const override { return "sync (userfaultfd write-protect faults)"; }

 private:
  void take_bits(PageSet* dirty);
  Status protect_again(const PageSet& dirty);
  void serve_faults();
  void answer(uint64_t page);
  void set_bits(const PageSet& pages) {
    for (const PageRange& range : pages) {
      for (uint64_t page = range.first; page < range.first + range.count; ++page) set_bit(page);
    }
  }
  void set_bit(uint64_t page) { bitmap_[page / 64] |= uint64_t{1} << (page % 64); }

  const ScopedFd uffd_;
  const ScopedFd pagemap_;
  const TrackedRange ram_;
  ScopedFd stop_;
  bool registered_ = false;
  std::mutex mutex_;              // guards bitmap_ and changes of the protection: see (*)
  std::vector<uint64_t> bitmap_;  // one bit a page
  PageSet assumed_, armed_;       // armed_: scratch of collect()
  std::thread thread_;
};

void SyncTracker::take_bits(PageSet* dirty) {
  for (size_t i = 0; i < bitmap_.size(); ++i) {
    uint64_t word = bitmap_[i];
    if (word == 0) continue;
    bitmap_[i] = 0;
    for (unsigned at = 0; word != 0;) {
      const auto skip = static_cast<unsigned>(std::countr_zero(word));
      word >>= skip;
      const auto run = static_cast<unsigned>(std::countr_one(word));
      append_pages(dirty, i * 64 + at + skip, run);
      at += skip + run;
      word = run == 64 ? 0 : word >> run;
    }
  }
}

Status SyncTracker::protect_again(const PageSet& dirty) {
  for (size_t i = 0; i < dirty.size();) {
    const uint64_t first = dirty[i].first;
    uint64_t end = first + dirty[i].count;
    for (++i; i < dirty.size() && dirty[i].first - end <= kGapPages; ++i)
      end = dirty[i].first + dirty[i].count;
    const int error = uffd_protect(uffd_.get(), bytes_of({first, end - first}, ram_), true);
    if (error != 0) {
      if (error == ESRCH) return process_ended();
      return Status::from_errno("write-protect dirty pages again", error);
    }
  }
  return {};
}

void SyncTracker::answer(uint64_t page) {
  set_bit(page);
  const TrackedRange range = bytes_of({page, 1}, ram_);
  // Fails with ESRCH when the process dies and with ENOENT when the mapping has gone; nobody is left waiting
  // then but a thread that faulted before the change, which a wake-up lets see the new state.
  if (uffd_protect(uffd_.get(), range, false) != 0) uffd_wake(uffd_.get(), range);
}

void SyncTracker::serve_faults() {
  begin_thread("fault", Urgency::urgent);
  std::array<uffd_msg, kMessagesPerRead> messages{};
  std::array<pollfd, 2> waits{{{uffd_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
  while (true) {
    const ssize_t got = ::read(uffd_.get(), messages.data(), sizeof messages);
    if (got > 0) {
      const std::lock_guard lock(mutex_);
      for (size_t i = 0; i < static_cast<size_t>(got) / sizeof(uffd_msg); ++i) {
        const uffd_msg& message = messages[i];
        if (message.event != UFFD_EVENT_PAGEFAULT) continue;  // no other event was asked for
        const uint64_t address = message.arg.pagefault.address;
        REMUSD_ASSERT(address - ram_.address < ram_.bytes, "faults come from the registered range");
        answer((address - ram_.address) / kPageSize);
      }
      continue;
    }
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR) return;
    if (waits[1].revents != 0) return;
  }
}

}  // namespace

Result<std::unique_ptr<Tracker>> make_sync_tracker(ScopedFd uffd, ScopedFd pagemap, TrackedRange ram) {
  auto tracker = std::make_unique<SyncTracker>(std::move(uffd), std::move(pagemap), ram);
  REMUSD_TRY(tracker->plant());
  return std::unique_ptr<Tracker>(std::move(tracker));
}

}  // namespace remusd::guest::qemu
