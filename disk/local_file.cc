// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/local_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>

namespace remusd::disk {
namespace {

constexpr uint64_t kSectorBytes = 512;

/// Open file description locks, on the byte that says "I write" and, for whoever must be alone, all of the
/// first ones: QEMU's image locks lie at 100 (permissions taken) and 200 (permissions not shared).
constexpr off_t kLockFirst = 100, kLockBytes = 200;

bool set_lock(int fd, int type) {
  struct flock want {};
  want.l_type = static_cast<short>(type);
  want.l_whence = SEEK_SET;
  want.l_start = kLockFirst;
  want.l_len = kLockBytes;
  return ::fcntl(fd, F_OFD_SETLK, &want) == 0;
}

Status lock_file(int fd, bool read_only, const std::string& path) {
  if (set_lock(fd, read_only ? F_RDLCK : F_WRLCK)) return {};
  if (errno == EAGAIN || errno == EACCES)
    return {Code::unsafe, "lock disk " + path + ": somebody else uses it"};
  return Status::from_errno("lock disk " + path);
}

Result<uint64_t> bytes_of(int fd, const std::string& path, bool* regular) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return Status::from_errno("look at disk " + path);
  *regular = S_ISREG(info.st_mode);
  if (*regular) return static_cast<uint64_t>(info.st_size);
  uint64_t bytes = 0;
  if (!S_ISBLK(info.st_mode))
    return Status(Code::invalid, "disk " + path + " is neither a file nor a block device");
  if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return Status::from_errno("look at disk " + path);
  return bytes;
}

bool is_size(uint64_t bytes) {
  return bytes > 0 && bytes % kSectorBytes == 0 && bytes <= kMaxDiskBytes;
}

Result<uint64_t> size_of(int fd, const std::string& path) {
  bool regular = false;
  REMUSD_ASSIGN(const uint64_t bytes, bytes_of(fd, path, &regular));
  if (!is_size(bytes))
    return Status(Code::invalid,
                  "disk " + path + " has " + std::to_string(bytes) +
                      " bytes: it must have a multiple of 512, at least 512 and at most 16 TiB");
  return bytes;
}

}  // namespace

Result<LocalFile> LocalFile::open(const std::string& path, bool read_only) {
  REMUSD_ASSIGN(LocalFile file, open_unlocked(path, read_only));
  REMUSD_TRY(lock_file(file.fd(), read_only, path));
  return file;
}

Result<LocalFile> LocalFile::open_unlocked(const std::string& path, bool read_only) {
  ScopedFd fd(::open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC));
  if (!fd) return Status::from_errno("open disk " + path);
  REMUSD_ASSIGN(const uint64_t bytes, size_of(fd.get(), path));
  return LocalFile(std::move(fd), path, bytes, read_only);
}

Result<uint64_t> LocalFile::bytes_now() const {
  bool regular = false;
  return bytes_of(fd(), path_, &regular);
}

Status LocalFile::fit(uint64_t bytes) {
  bool regular = false;
  REMUSD_ASSIGN(const uint64_t now, bytes_of(fd(), path_, &regular));
  const std::string sizes = "disk " + path_ + " has " + std::to_string(now) + " bytes here, and " +
                            std::to_string(bytes) + " there";
  if (!is_size(bytes)) return {Code::unsafe, sizes + ", which is no size of a disk"};
  if (now < bytes && (!regular || read_only_)) return {Code::unsafe, sizes + ": make it as large"};
  if (now < bytes && ::ftruncate(fd(), static_cast<off_t>(bytes)) != 0)
    return Status::from_errno(sizes + ": it cannot be made longer");
  bytes_ = bytes;
  return {};
}

void LocalFile::drop_cache() const {
  (void)::ioctl(fd(), BLKFLSBUF, 0);
  (void)::posix_fadvise(fd(), 0, 0, POSIX_FADV_DONTNEED);
}

Status LocalFile::reread() const {
  REMUSD_TRY(flush());
  drop_cache();
  return {};
}

Status LocalFile::lock() const {
  REMUSD_TRY(lock_file(fd(), read_only_, path_));
  drop_cache();  // A network file system does so with the lock; of a block device nobody tells the kernel.
  REMUSD_ASSIGN(const uint64_t bytes, size_of(fd(), path_));
  if (bytes == bytes_) return {};
  return {Code::unsafe,
          "disk " + path_ + " has " + std::to_string(bytes) + " bytes by now, not " + std::to_string(bytes_)};
}

void LocalFile::unlock() const {
  (void)set_lock(fd(), F_UNLCK);
}

Status LocalFile::failed(const char* what, uint64_t offset, uint64_t bytes) const {
  return Status::from_errno(std::string(what) + " " + std::to_string(bytes) + " bytes at " +
                            std::to_string(offset) + " of disk " + path_);
}

Status LocalFile::read(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd(), out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = EIO;  // Somebody made the file shorter.
    if (got <= 0) return failed("read", offset, out.size());
    out = out.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

Status LocalFile::write(uint64_t offset, std::span<const std::byte> data) const {
  while (!data.empty()) {
    const ssize_t put = ::pwrite(fd(), data.data(), data.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put == 0) errno = ENOSPC;
    if (put <= 0) return failed("write", offset, data.size());
    data = data.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

Status LocalFile::write_zeros(uint64_t offset, uint64_t bytes) const {
  static constexpr std::array<std::byte, 64 << 10> kZeros{};
  while (bytes > 0) {
    const uint64_t now = std::min<uint64_t>(bytes, kZeros.size());
    REMUSD_TRY(write(offset, std::span(kZeros).first(now)));
    offset += now;
    bytes -= now;
  }
  return {};
}

Status LocalFile::zero(uint64_t offset, uint64_t bytes) const {
  if (::fallocate(fd(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(bytes)) == 0)
    return {};
  if (errno == EOPNOTSUPP || errno == ENOTSUP || errno == EINVAL) return write_zeros(offset, bytes);
  return failed("zero", offset, bytes);
}

Status LocalFile::punch(uint64_t offset, uint64_t bytes) const {
  if (::fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(bytes)) == 0)
    return {};
  if (errno == EOPNOTSUPP || errno == ENOTSUP || errno == EINVAL) return zero(offset, bytes);
  return failed("punch", offset, bytes);
}

Status LocalFile::flush() const {
  if (::fdatasync(fd()) == 0) return {};
  return Status::from_errno("flush disk " + path_);
}

Result<LocalFile::Run> LocalFile::next_data(uint64_t offset) const {
  const off_t begin = ::lseek(fd(), static_cast<off_t>(offset), SEEK_DATA);
  if (begin < 0) {
    if (errno == ENXIO) {
      // Beyond the last data; or beyond the end, which somebody has moved.
      if (::lseek(fd(), 0, SEEK_END) >= static_cast<off_t>(bytes_)) return Run{bytes_, bytes_};
      return Status(Code::io,
                    "disk " + path_ + " is shorter than its " + std::to_string(bytes_) + " bytes by now");
    }
    if (errno == EINVAL || errno == EOPNOTSUPP) return Run{offset, bytes_};
    return failed("look for data in", offset, bytes_ - offset);
  }
  if (static_cast<uint64_t>(begin) >= bytes_) return Run{bytes_, bytes_};  // of what is not used
  const off_t end = ::lseek(fd(), begin, SEEK_HOLE);
  if (end < 0) return failed("look for a hole in", static_cast<uint64_t>(begin), bytes_ - offset);
  return Run{static_cast<uint64_t>(begin), std::min(static_cast<uint64_t>(end), bytes_)};
}

Status make_whole_file(const std::string& path, uint64_t bytes) {
  if (std::error_code none; std::filesystem::exists(path, none)) return {};
  // Complete under another name first: a file that is there has all of its room.
  const std::string made = path + ".new";
  const ScopedFd file(::open(made.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file) return Status::from_errno("make " + made);
  if (const int error = ::posix_fallocate(file.get(), 0, static_cast<off_t>(bytes)); error != 0)
    return Status::from_errno("make room for " + made, error);
  if (::fsync(file.get()) != 0) return Status::from_errno("flush " + made);
  if (::rename(made.c_str(), path.c_str()) != 0) return Status::from_errno("name " + path);
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const ScopedFd parent(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent || ::fsync(parent.get()) != 0) return Status::from_errno("flush the folder of " + path);
  return {};
}

}  // namespace remusd::disk
