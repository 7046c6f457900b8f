// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "guest/residue.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace remusd::guest {

uint64_t Residue::used_bytes() const {
  constexpr uint64_t kBlock = 512;  // stat(2)
  struct stat info {};
  if (!file_ || ::fstat(file_.get(), &info) != 0) return 0;
  return static_cast<uint64_t>(info.st_blocks) * kBlock;
}

Status Residue::populated(PageSet* pages) const {
  return populated_pages(file_.get(), 0, memory_.size(), pages);
}

void Residue::release(const PageRange& pages) {
  // A guest's memory is open for reading only.
  const std::string path = "/proc/self/fd/" + std::to_string(file_.get());
  const ScopedFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file) return;
  (void)::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(pages.first * kPageSize), static_cast<off_t>(pages.count * kPageSize));
}

Status populated_pages(int fd, uint64_t begin, uint64_t end_byte, PageSet* pages) {
  pages->clear();
  auto at = static_cast<off_t>(begin);
  const auto end = static_cast<off_t>(end_byte);
  while (at < end) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;
    if (data < 0) return Status::from_errno("look for data in the guest's RAM file");
    off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return Status::from_errno("look for holes in the guest's RAM file");
    hole = std::min(hole, end);
    if (data >= hole) break;  // Data that appeared behind the end, or vanished again.
    const uint64_t first = static_cast<uint64_t>(data) / kPageSize;
    const uint64_t last = (static_cast<uint64_t>(hole) + kPageSize - 1) / kPageSize;
    pages->push_back({first, last - first});
    at = hole;
  }
  return {};
}

}  // namespace remusd::guest
