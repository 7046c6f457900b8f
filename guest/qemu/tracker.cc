// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/qemu/tracker.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/statfs.h>

#include <cstdio>
#include <fstream>

#include "ckpt/scoped_fd.h"
#include "guest/qemu/tracker_kinds.h"
#include "guest/qemu/uffd.h"

namespace remusd::guest::qemu {
namespace {

std::string hex_range(uint64_t begin, uint64_t end) {
  char text[64];
  std::snprintf(text, sizeof text, "%lx-%lx", begin, end);
  return text;
}

/// That the range is mapped whole, shared, from small pages. Registering would accept more than we can track.
Status check_range(int pid, TrackedRange ram) {
  const std::string what = "track memory " + hex_range(ram.address, ram.address + ram.bytes) +
                           " of process " + std::to_string(pid) + ": ";
  if (ram.bytes == 0 || ram.address % kPageSize != 0 || ram.bytes % kPageSize != 0 ||
      ram.address + ram.bytes < ram.address) {
    return {Code::invalid, what + "not a range of whole pages"};
  }
  const std::string proc = "/proc/" + std::to_string(pid);
  std::ifstream maps(proc + "/maps");
  uint64_t covered = ram.address;
  for (std::string line; covered < ram.address + ram.bytes && std::getline(maps, line);) {
    uint64_t begin = 0, end = 0;
    char rights[5] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, rights) != 3 || end <= covered) continue;
    if (begin > covered) break;
    if (rights[3] != 's') return {Code::invalid, what + "not shared; use memory-backend-memfd with share=on"};
    struct statfs system {};
    const std::string file = proc + "/map_files/" + hex_range(begin, end);
    if (::statfs(file.c_str(), &system) == 0 && system.f_type == HUGETLBFS_MAGIC) {
      return {Code::invalid, what + "made of huge pages, which are not tracked; drop hugetlb=on"};
    }
    covered = end;
  }
  if (covered < ram.address + ram.bytes) return {Code::invalid, what + "not mapped whole"};
  return {};
}

Status too_old(const char* facility, const char* release) {
  return {Code::unsupported,
          std::string(facility) + " needs Linux " + release + " or later; this is " + kernel_release()};
}

}  // namespace

Result<std::unique_ptr<Tracker>> plant_tracker(int pid, TrackedRange ram, int memory, TrackerKind kind,
                                               const std::function<Result<int>(int fd)>& give_fd) {
  const std::string pagemap_path = "/proc/" + std::to_string(pid) + "/pagemap";
  ScopedFd pagemap(::open(pagemap_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap) return Status::from_errno("open " + pagemap_path);
  REMUSD_TRY(check_range(pid, ram));

  // Facilities are tried, not guessed from the release: distributions carry patches back.
  const bool scan = has_pagemap_scan(pagemap.get(), ram.address);
  if (kind == TrackerKind::async && !scan) {
    return too_old("the async tracker (PAGEMAP_SCAN and userfaultfd WP_ASYNC)", "6.7");
  }
  REMUSD_ASSIGN(ScopedFd uffd, fetch_userfaultfd(pid, give_fd));
  if (kind != TrackerKind::sync && scan) {
    REMUSD_ASSIGN(const bool async, uffd_handshake(uffd.get(), kAsyncFeatures));
    if (async) return make_async_tracker(std::move(uffd), std::move(pagemap), ram, memory);
    if (kind == TrackerKind::async) return too_old("the async tracker (userfaultfd WP_ASYNC)", "6.7");
  }
  REMUSD_ASSIGN(const bool sync, uffd_handshake(uffd.get(), kSyncFeatures));
  if (sync) return make_sync_tracker(std::move(uffd), std::move(pagemap), ram);
  if (kind == TrackerKind::sync) return too_old("the sync tracker (userfaultfd WP_HUGETLBFS_SHMEM)", "5.19");
  return too_old("tracking dirty pages of shared memory", "5.19 (sync) or 6.7 (async)");
}

}  // namespace remusd::guest::qemu
