// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/drive.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace remusd::disk {
namespace {

constexpr std::array<std::byte, 256 << 10> kZeros{};
/// What is copied within microseconds.
constexpr uint32_t kSmallBytes = 64u << 10;

bool lies_in_memory(int fd) {
  struct statfs info {};
  return ::fstatfs(fd, &info) == 0 && info.f_type == TMPFS_MAGIC;
}

bool passes(int error) {
  return error == EINTR || error == EAGAIN;
}

bool not_supported(int error) {
  return error == EOPNOTSUPP || error == ENOTSUP || error == EINVAL;
}

}  // namespace

void Job::completed(int result) {
  drive->completed(this, result);
}

Drive::Drive(const LocalFile& file, OperationRing* ring, Owner* owner)
    : file_(file), ring_(ring), owner_(owner), in_memory_(lies_in_memory(file.fd())) {}

bool Drive::pass(const nbd::Request& request, PagePipe* pages) {
  if (request.bytes < kSmallBytes || !prompt_passes_.expected()) return false;
  const Promptness::Watch watch(&prompt_passes_);  // It waits for pages that are being read.
  return pages->fill(file_.fd(), request.offset, request.bytes);
}

void Drive::read(Job* job) {
  const auto place = static_cast<off_t>(job->request.offset);
  if (cache_reads_) {
    const iovec into{job->content.data(), job->request.bytes};
    const ssize_t got = ::preadv2(file_.fd(), &into, 1, place, in_memory_ ? 0 : RWF_NOWAIT);
    if (got > 0) job->done = static_cast<uint32_t>(got);
    if (job->done == job->request.bytes) return owner_->done(job, 0);
    if (got < 0 && errno == EOPNOTSUPP) cache_reads_ = false;
  }
  read_rest(job);
}

void Drive::read_rest(Job* job) {
  ring_->start(job, [&](io_uring_sqe* entry) {
    io_uring_prep_read(entry, file_.fd(), job->content.data() + job->done, job->request.bytes - job->done,
                       job->request.offset + job->done);
  });
}

void Drive::cache(Job* job) {
  ring_->start(job, [&](io_uring_sqe* entry) {
    io_uring_prep_fadvise(entry, file_.fd(), job->request.offset, static_cast<off_t>(job->request.bytes),
                          POSIX_FADV_WILLNEED);
  });
}

void Drive::extents(Job* job) {
  const size_t most = job->request.has(nbd::kReqOne) ? 1 : kMaxExtents;
  const uint64_t end = job->request.end();
  size_t count = 0;
  for (uint64_t place = job->request.offset; place < end && count < most;) {
    auto run = file_.next_data(place);
    if (!run.ok()) return owner_->done(job, EIO);
    // Somebody may have made the file shorter, or a hole where the run began.
    const bool data = run->begin <= place && run->end > place;
    const uint64_t until = std::min(data ? run->end : std::max(run->begin, place + 1), end);
    nbd::Extent extent;
    extent.bytes = static_cast<uint32_t>(until - place);
    extent.state = data ? 0 : nbd::kStateHole | nbd::kStateZero;
    std::memcpy(job->content.data() + count * sizeof extent, &extent, sizeof extent);
    ++count;
    place = until;
  }
  job->reply_bytes = static_cast<uint32_t>(count * sizeof(nbd::Extent));
  owner_->done(job, 0);
}

void Drive::lay_over(const KeptRun& kept, Job* job) {
  if (job->request.command == nbd::Command::read)
    return kept.lay_over({job->content.data(), job->request.bytes});
  const size_t most = job->request.has(nbd::kReqOne) ? 1 : kMaxExtents;
  const std::span room(job->content.data(), kMaxExtents * sizeof(nbd::Extent));
  const size_t count = kept.lay_over_extents(room, job->reply_bytes / sizeof(nbd::Extent), most);
  job->reply_bytes = static_cast<uint32_t>(count * sizeof(nbd::Extent));
}

/// Single changes, each followed by a flush, are counted.
void Drive::foresee(const nbd::Request& request) {
  if (request.changes()) {
    if (++changes_since_flush_ > 1) flushed_singly_ = 0;
  } else {
    if (changes_since_flush_ == 1) ++flushed_singly_;
    changes_since_flush_ = 0;
  }
}

void Drive::change(Job* job) {
  using nbd::Command;
  foresee(job->request);
  job->begin = job->request.offset;
  job->end = job->request.end();
  job->way = job->request.command == Command::write ? Job::Way::write
             : keeps_room(job->request)             ? Job::Way::zero
                                                    : Job::Way::punch;
  if (order_.add(job)) make(job);
}

/// False: it is the ring's, or what is left of it.
bool Drive::write_directly(Job* job) {
  if (job->request.bytes > kSmallBytes || !(in_memory_ || prompt_writes_.expected())) return false;
  const Promptness::Watch watch(&prompt_writes_);
  while (job->done < job->request.bytes) {
    const ssize_t put = ::pwrite(file_.fd(), job->content.data() + job->done, job->request.bytes - job->done,
                                 static_cast<off_t>(job->request.offset + job->done));
    if (put <= 0) return false;
    job->done += static_cast<uint32_t>(put);
  }
  return true;
}

void Drive::make(Job* job) {
  const uint64_t offset = job->request.offset + job->done;
  const uint32_t bytes = job->request.bytes - job->done;
  switch (job->way) {
    case Job::Way::write:
      // What goes wrong here the ring will tell, too.
      if (write_directly(job)) return made(job, 0);
      return ring_->start(job, [&](io_uring_sqe* entry) {
        io_uring_prep_write(entry, file_.fd(), job->content.data() + job->done,
                            job->request.bytes - job->done, job->request.offset + job->done);
      });
    case Job::Way::punch:
    case Job::Way::zero:
      return ring_->start(job, [&](io_uring_sqe* entry) {
        const int mode = job->way == Job::Way::punch ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
        io_uring_prep_fallocate(entry, file_.fd(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                                static_cast<off_t>(bytes));
      });
    case Job::Way::write_zeros:
      return ring_->start(job, [&](io_uring_sqe* entry) {
        io_uring_prep_write(entry, file_.fd(), kZeros.data(),
                            static_cast<unsigned>(std::min<size_t>(bytes, kZeros.size())), offset);
      });
  }
}

void Drive::completed(Job* job, int result) {
  using nbd::Command;
  const bool change = job->request.changes();
  if (job->request.command == Command::cache) return owner_->done(job, 0);  // It was advice.
  if (result < 0 && passes(-result)) return change ? make(job) : read_rest(job);
  if (!change) {
    if (result <= 0) return owner_->done(job, result == 0 ? EIO : -result);  // 0: the file got shorter
    job->done += static_cast<uint32_t>(result);
    return job->done < job->request.bytes ? read_rest(job) : owner_->done(job, 0);
  }
  if (job->way == Job::Way::punch || job->way == Job::Way::zero) {
    if (result >= 0 || !not_supported(-result)) return made(job, -result);
    job->way = job->way == Job::Way::punch ? Job::Way::zero : Job::Way::write_zeros;
    return make(job);
  }
  if (result <= 0) return made(job, result == 0 ? ENOSPC : -result);
  job->done += static_cast<uint32_t>(result);
  return job->done < job->request.bytes ? make(job) : made(job, 0);
}

void Drive::made(Job* job, int error) {
  const size_t first = ready_.size();
  ++made_;
  order_.remove(job, &ready_);
  owner_->changed(job, error);
  if (error == 0 && job->request.has(nbd::kFua))
    flush(job);
  else
    owner_->done(job, error);
  // A job that is made at once comes back here: what it sets free lies behind what is looked at.
  for (size_t i = first; i < ready_.size(); ++i) make(static_cast<Job*>(ready_[i]));
  ready_.resize(first);
}

void Drive::flush(Job* job) {
  if (!job->request.changes()) foresee(job->request);  // not a FUA write
  if (broken_) return owner_->done(job, EIO);
  if (clean()) return owner_->done(job, 0);
  synced_next_.push_back(job);
  start_sync();
}

void Drive::flush_later() {
  if (clean()) return owner_->flushed_later(0);
  ++later_next_;
  start_sync();
}

void Drive::start_sync() {
  if (syncing_ || (synced_next_.empty() && later_next_ == 0)) return;
  syncing_ = true;
  made_syncing_ = made_;
  synced_now_.swap(synced_next_);
  later_now_ = std::exchange(later_next_, 0);
  if (sync_directly()) return;
  ring_->start(&sync_,
               [&](io_uring_sqe* entry) { io_uring_prep_fsync(entry, file_.fd(), IORING_FSYNC_DATASYNC); });
}

/// 0 or a negative errno.
int Drive::sync_file() {
  const Promptness::Watch watch(&prompt_syncs_);
  return ::fdatasync(file_.fd()) == 0 ? 0 : -errno;
}

/// For the only client, who waits for it; others would wait, too.
bool Drive::sync_directly() {
  if (!owner_->one_job() || !syncs_promptly()) return false;
  synced(sync_file());
  return true;
}

void Drive::sync_ahead() {
  if (changes_since_flush_ != 1 || flushed_singly_ < kSureAfter) return;
  if (syncing_ || broken_ || clean() || !syncs_promptly()) return;
  syncing_ = true;
  made_syncing_ = made_;
  synced(sync_file());
}

void Drive::synced(int result) {
  // What lay beyond a new end is lost, flushed or not.
  if (const auto now = file_.bytes_now(); result >= 0 && (!now.ok() || *now < file_.bytes())) result = -EIO;
  if (result < 0) {
    broken_ = true;
    synced_now_.insert(synced_now_.end(), synced_next_.begin(), synced_next_.end());
    synced_next_.clear();
    later_now_ += std::exchange(later_next_, 0);
  } else {
    made_good_ = made_syncing_;
  }
  for (Job* job : synced_now_) owner_->done(job, result < 0 ? EIO : 0);
  synced_now_.clear();
  for (; later_now_ > 0; --later_now_) owner_->flushed_later(-std::min(result, 0));
  syncing_ = false;
  start_sync();
}

}  // namespace remusd::disk
