// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// userfaultfd and PAGEMAP_SCAN: the kernel interface (admin-guide/mm/userfaultfd.rst,
// admin-guide/mm/pagemap.rst) as far as tracking needs it. Constants newer than the build machine's headers
// are spelled out here.
#pragma once

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <cstdint>
#include <functional>
#include <string>

#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"
#include "guest/qemu/tracker.h"

namespace remusd::guest::qemu {

inline constexpr uint64_t kUffdWpUnpopulated = 1 << 13;  // UFFD_FEATURE_WP_UNPOPULATED, Linux 6.4
inline constexpr uint64_t kUffdWpAsync = 1 << 15;        // UFFD_FEATURE_WP_ASYNC, Linux 6.7
inline constexpr uint64_t kSyncFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
inline constexpr uint64_t kAsyncFeatures = kSyncFeatures | kUffdWpUnpopulated | kUffdWpAsync;

/// struct page_region and struct pm_scan_arg of linux/fs.h (6.7).
struct PageRegion {
  uint64_t start, end, categories;
};
struct PageScan {
  uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(PageRegion) == 24 && sizeof(PageScan) == 96);
inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PageScan);
inline constexpr uint64_t kPageIsWritten = 1 << 1;
inline constexpr uint64_t kScanWpMatching = 1 << 0;
inline constexpr uint64_t kScanCheckWpAsync = 1 << 1;

/// Makes process `pid` create a userfaultfd and brings it here; the process keeps no copy. `give_fd` as in
/// plant_tracker(). The descriptor has had no UFFDIO_API yet.
Result<ScopedFd> fetch_userfaultfd(int pid, const std::function<Result<int>(int fd)>& give_fd);

/// UFFDIO_API. False when the kernel lacks one of `features`; another attempt may follow.
Result<bool> uffd_handshake(int uffd, uint64_t features);
/// UFFDIO_REGISTER in write-protect mode. `exists` when another userfaultfd holds part of the range.
Status uffd_register(int uffd, TrackedRange range);
/// UFFDIO_UNREGISTER: wakes whoever waits and lifts the protection. Best effort. REQUIRES: uffd_register() of
/// the range succeeded; kernels before 6.16 would remove the registration of another userfaultfd.
void uffd_unregister(int uffd, TrackedRange range);
/// UFFDIO_WRITEPROTECT on or off; off also wakes. Returns 0 or an errno; EAGAIN and EINTR are retried here.
int uffd_protect(int uffd, TrackedRange range, bool on);
/// UFFDIO_WAKE: whoever waits in the range looks again. Best effort.
void uffd_wake(int uffd, TrackedRange range);
/// Protects all of it, in pieces, so that the process's own page faults get in between.
Status uffd_protect_all(int uffd, TrackedRange range);

/// Whether the memory behind an open /proc/PID/pagemap still is that of a living process. `address` is
/// any in its range.
bool memory_lives(int pagemap, uint64_t address);
/// "6.18.44": what runs here, for messages.
std::string kernel_release();

}  // namespace remusd::guest::qemu
