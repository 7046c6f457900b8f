// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/disks.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace remusd::disk {
namespace {

/// A sparse file of so many bytes, unless there is something.
Status make_missing(const std::string& path, uint64_t bytes) {
  const ScopedFd made(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!made) return errno == EEXIST ? Status() : Status::from_errno("make disk " + path);
  if (::ftruncate(made.get(), static_cast<off_t>(bytes)) == 0) return {};
  const Status status = Status::from_errno("make disk " + path + " " + std::to_string(bytes) + " bytes long");
  ::unlink(path.c_str());
  return status;
}

}  // namespace

Result<std::unique_ptr<Disks>> Disks::open(const std::vector<DiskFile>& disks, uint64_t limit_bytes) {
  if (disks.size() > kMaxDisks)
    return Status(Code::invalid, "a guest may have " + std::to_string(kMaxDisks) + " disks, not " +
                                     std::to_string(disks.size()));
  std::vector<LocalFile> files;
  for (const DiskFile& disk : disks) {
    if (disk.bytes > 0) REMUSD_TRY(make_missing(disk.path, disk.bytes));
    REMUSD_ASSIGN(LocalFile file, LocalFile::open(disk.path, disk.read_only));
    if (disk.bytes > 0 && file.bytes() != disk.bytes)
      return Status(Code::unsafe, "disk " + disk.name + ": " + disk.path + " has " +
                                      std::to_string(file.bytes()) + " bytes here, and " +
                                      std::to_string(disk.bytes) + " on the primary");
    files.push_back(std::move(file));
  }
  return std::unique_ptr<Disks>(new Disks(std::move(files), limit_bytes));
}

std::vector<uint64_t> Disks::sizes() const {
  std::vector<uint64_t> sizes;
  for (const LocalFile& file : files_) sizes.push_back(file.bytes());
  return sizes;
}

}  // namespace remusd::disk
