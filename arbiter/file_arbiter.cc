// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Records as files. The lock file is separate from the record, because the record is replaced by rename.
// A reader takes the lock too: on shared storage that is what makes its answer current.
#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <thread>

#include "arbiter/arbiter.h"
#include "arbiter/record_json.h"
#include "ckpt/fail_point.h"
#include "ckpt/scoped_fd.h"

namespace remusd::arbiter {
namespace {

constexpr Duration kLockPause = std::chrono::milliseconds(1);

class FileArbiter final : public Arbiter {
 public:
  explicit FileArbiter(std::string directory) : directory_(std::move(directory)) {}

  Result<std::optional<Record>> read(const std::string& vm, Time deadline) override {
    REMUSD_TRY(check_guest_name(vm));
    REMUSD_ASSIGN(const ScopedFd lock, take_lock(vm, deadline));
    return load(vm);
  }

  Answer compare_and_swap(const std::string& vm, uint64_t expected_generation, const Record& desired,
                          Time deadline) override {
    if (Status status = check_guest_name(vm); !status.ok()) return unknown(status);
    Result<ScopedFd> lock = take_lock(vm, deadline);
    if (!lock.ok()) return unknown(lock.status());
    Result<std::optional<Record>> current = load(vm);
    if (!current.ok()) return unknown(current.status());
    const uint64_t generation = current->has_value() ? (*current)->generation : 0;
    if (generation != expected_generation) return {Verdict::lost, *current, {}};
    if (Status lost = fail_point_error("arbiter.before_install"); !lost.ok()) return unknown(lost);
    if (Status status = store(vm, desired); !status.ok()) return {Verdict::unknown, *current, status};
    if (Status lost = fail_point_error("arbiter.installed"); !lost.ok()) return unknown(lost);
    return {Verdict::won, desired, {}};
  }

  std::string describe() const override { return "file " + directory_; }

 private:
  static Answer unknown(Status why) { return {Verdict::unknown, std::nullopt, std::move(why)}; }
  std::string path(const std::string& vm, const char* suffix) const { return directory_ + "/" + vm + suffix; }

  /// The lock is held until the descriptor is closed.
  Result<ScopedFd> take_lock(const std::string& vm, Time deadline) const {
    const std::string name = path(vm, ".lock");
    ScopedFd file(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!file) return Status::from_errno("open arbiter lock " + name);
    while (true) {
      struct flock request {};
      request.l_type = F_WRLCK;
      request.l_whence = SEEK_SET;
      if (::fcntl(file.get(), F_OFD_SETLK, &request) == 0) return file;
      if (errno != EAGAIN && errno != EACCES && errno != EINTR) return Status::from_errno("lock " + name);
      if (Clock::now() + kLockPause >= deadline) {
        return Status(Code::timed_out, "arbiter lock " + name + " is held by another process");
      }
      std::this_thread::sleep_for(kLockPause);
    }
  }

  Result<std::optional<Record>> load(const std::string& vm) const {
    const std::string name = path(vm, ".json");
    const ScopedFd file(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) {
      if (errno == ENOENT) return std::optional<Record>();
      return Status::from_errno("open arbiter record " + name);
    }
    std::array<char, kMaxRecordBytes> buffer;
    const ssize_t got = ::pread(file.get(), buffer.data(), buffer.size(), 0);
    if (got < 0) return Status::from_errno("read arbiter record " + name);
    REMUSD_ASSIGN(Record record, decode_record({buffer.data(), static_cast<size_t>(got)}, name));
    return std::optional<Record>(std::move(record));
  }

  /// Durable when it returns ok. After a failure the record may be the old or the new one, never a mixture.
  Status store(const std::string& vm, const Record& record) const {
    const std::string temporary = path(vm, ".new");
    const std::string text = encode_record(record) + "\n";
    {
      const ScopedFd file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
      if (!file) return Status::from_errno("create arbiter record " + temporary);
      if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        return Status::from_errno("write arbiter record " + temporary);
      }
      if (::fsync(file.get()) != 0) return Status::from_errno("fsync arbiter record " + temporary);
    }
    if (::rename(temporary.c_str(), path(vm, ".json").c_str()) != 0) {
      return Status::from_errno("install arbiter record " + path(vm, ".json"));
    }
    const ScopedFd directory(::open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory || ::fsync(directory.get()) != 0) return Status::from_errno("fsync " + directory_);
    return {};
  }

  const std::string directory_;
};

}  // namespace

Result<std::unique_ptr<Arbiter>> open_file_arbiter(const std::string& directory) {
  if (directory.empty() || directory.front() != '/') {
    return Status(Code::invalid, "arbiter directory '" + directory + "' is not an absolute path");
  }
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return Status::from_errno("create arbiter directory " + directory);
  }
  struct stat info {};
  if (::stat(directory.c_str(), &info) != 0) return Status::from_errno("look at " + directory);
  if (!S_ISDIR(info.st_mode)) return Status(Code::invalid, "arbiter path " + directory + " is no directory");
  return std::unique_ptr<Arbiter>(new FileArbiter(directory));
}

}  // namespace remusd::arbiter
