// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest's disk as it lies on this host: a raw file or a block device. The calls here block; the NBD server
// does its own I/O on fd(). Thread-safe: they keep no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"
#include "disk/change.h"

namespace remusd::disk {

class LocalFile {
 public:
  /// Opens it and locks it against other users of such locks (QEMU's, ours): `unsafe` when somebody has it,
  /// `invalid` when it is neither a regular file nor a block device, is empty, no multiple of 512 bytes, or
  /// larger than kMaxDiskBytes.
  static Result<LocalFile> open(const std::string& path, bool read_only = false);
  /// The same without the lock, for storage that another host has: to look at, until lock().
  static Result<LocalFile> open_unlocked(const std::string& path, bool read_only = false);
  /// `unsafe` when somebody else has it. What the kernel remembers of the content is forgotten: it may be
  /// older than what is there.
  Status lock() const;
  void unlock() const;

  int fd() const { return fd_.get(); }
  const std::string& path() const { return path_; }
  /// What is used of it: all that it had when it was opened, or what fit() said. It does not change after.
  uint64_t bytes() const { return bytes_; }
  /// What it has by now, which somebody may have changed.
  Result<uint64_t> bytes_now() const;
  /// Makes bytes() so many. A regular file that has less gets a hole at its end; of one, or a block device,
  /// that has more the rest stays as it is and is not used. `unsafe`: a block device that has less, or what
  /// is no size of a disk. Before anything else.
  Status fit(uint64_t bytes);
  bool read_only() const { return read_only_; }

  // All whole, or `io` with the path, the place and the system's word.
  Status read(uint64_t offset, std::span<std::byte> out) const;
  Status write(uint64_t offset, std::span<const std::byte> data) const;
  /// As ChangeKind says; zeros are written where the file system cannot do better.
  Status zero(uint64_t offset, uint64_t bytes) const;
  Status punch(uint64_t offset, uint64_t bytes) const;
  /// What was written is on the medium. After a failure nothing is known of it, and trying again proves
  /// nothing.
  Status flush() const;
  /// What is read from here on is on the medium: a flush that failed may have left other bytes in the page
  /// cache than there.
  Status reread() const;

  /// Where the next run that may hold other than zeros lies, from `offset` on; begin == bytes() when there is
  /// none. What the file system does not tell counts as data.
  struct Run {
    uint64_t begin = 0, end = 0;
  };
  Result<Run> next_data(uint64_t offset) const;

 private:
  LocalFile(ScopedFd fd, std::string path, uint64_t bytes, bool read_only)
      : fd_(std::move(fd)), path_(std::move(path)), bytes_(bytes), read_only_(read_only) {}
  Status failed(const char* what, uint64_t offset, uint64_t bytes) const;
  void drop_cache() const;
  Status write_zeros(uint64_t offset, uint64_t bytes) const;

  ScopedFd fd_;
  std::string path_;
  uint64_t bytes_ = 0;
  bool read_only_ = false;
};

/// Makes a file with room for all of it, and its name, durably; one that is there stays as it is.
Status make_whole_file(const std::string& path, uint64_t bytes);

}  // namespace remusd::disk
