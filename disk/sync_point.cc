// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/sync_point.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "ckpt/thread.h"
#include "ckpt/wire.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;

/// A second open file: what a flush of it finds wrong stays to be told by the first one.
Result<ScopedFd> open_again(const LocalFile& file) {
  const std::string link = "/proc/self/fd/" + std::to_string(file.fd());
  ScopedFd again(::open(link.c_str(), (file.read_only() ? O_RDONLY : O_RDWR) | O_CLOEXEC));
  if (!again) return Status::from_errno("open disk " + file.path() + " once more");
  return again;
}

uint64_t hash(const Bytes& bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

uint64_t identity_of(std::span<const LocalFile> files) {
  Bytes all;
  for (const LocalFile& file : files) {
    struct stat info {};
    (void)::fstat(file.fd(), &info);
    ckpt::put(info.st_dev, &all);
    ckpt::put(info.st_ino, &all);
    ckpt::put(info.st_rdev, &all);
  }
  return hash(all);
}

}  // namespace

Result<std::unique_ptr<SyncPoint>> SyncPoint::open(const SyncPointOptions& options,
                                                   std::span<const LocalFile> files, const Tap& tap,
                                                   std::function<void()> stored) {
  std::vector<uint64_t> sizes;
  std::vector<ScopedFd> flushed;
  for (const LocalFile& file : files) {
    sizes.push_back(file.bytes());
    // What both hosts write to tells nothing, and is flushed by whoever does.
    if (tap.holds(sizes.size() - 1)) continue;
    REMUSD_ASSIGN(ScopedFd again, open_again(file));
    flushed.push_back(std::move(again));
  }
  const uint64_t bytes = DirtyMap::file_bytes_for(sizes);
  struct stat info {};
  const bool there = ::stat(options.path.c_str(), &info) == 0;
  if (there && static_cast<uint64_t>(info.st_size) != bytes && ::unlink(options.path.c_str()) != 0)
    return Status::from_errno("remove " + options.path);
  REMUSD_TRY(make_whole_file(options.path, bytes));
  REMUSD_ASSIGN(LocalFile file, LocalFile::open(options.path));
  std::unique_ptr<SyncPoint> made(new SyncPoint(options, std::make_unique<LocalFile>(std::move(file)),
                                                std::move(flushed), tap, std::move(stored)));
  REMUSD_ASSIGN(made->map_, DirtyMap::open(made->medium_, sizes, {identity_of(files), made->look()}));
  made->thread_ = std::thread([point = made.get()] {
    begin_thread("diskmap");
    point->run();
  });
  made->flusher_ = std::thread([point = made.get()] {
    begin_thread("diskflush");
    point->run_flusher();
  });
  return made;
}

SyncPoint::SyncPoint(const SyncPointOptions& options, std::unique_ptr<LocalFile> file,
                     std::vector<ScopedFd> flushed, const Tap& tap, std::function<void()> stored)
    : options_(options),
      file_(std::move(file)),
      medium_(file_.get()),
      flushed_(std::move(flushed)),
      tap_(tap),
      stored_(std::move(stored)) {}

SyncPoint::~SyncPoint() {
  if (!thread_.joinable()) return;
  {
    const Lock lock(mutex_);
    quit_ = true;
  }
  wake_.notify_one();
  flush_wake_.notify_one();
  thread_.join();
  flusher_.join();
  // Without it the next one takes the disks for what they were when a host died: that is right, too.
  (void)map_->leave(look());
}

/// How the files look from outside: when they were last written to. Never 0.
uint64_t SyncPoint::look() const {
  Bytes all;
  for (const ScopedFd& file : flushed_) {
    struct stat info {};
    (void)::fstat(file.get(), &info);
    ckpt::put(info.st_size, &all);
    ckpt::put(info.st_mtim, &all);
  }
  return std::max<uint64_t>(hash(all), 1);
}

bool SyncPoint::touch(const Change& change) {
  if (map_->touch(change.disk, change.offset, change.bytes)) return true;
  {
    const Lock lock(mutex_);
    wanted_ = true;
  }
  wake_.notify_one();
  return false;
}

void SyncPoint::failed(const Change& change) {
  {
    const Lock lock(mutex_);
    forget_ = true;
    session_.reset();
    failure_ = {Code::io, "a change of disk " + std::to_string(change.disk) +
                              " failed here: the next first sync looks at all of the disks"};
  }
  wake_.notify_one();
}

void SyncPoint::begin_session(const ckpt::SessionId& session, bool turns) {
  map_->begin_session();
  const Lock lock(mutex_);
  session_ = Session{};
  session_->id = session;
  session_->turns = turns;
}

void SyncPoint::durable(uint64_t epoch) {
  bool due = false;
  {
    const Lock lock(mutex_);
    if (!session_) return;
    session_->durable = std::max(session_->durable, epoch);
    due = flush_due();
  }
  if (due) wake_.notify_one();
}

void SyncPoint::end_session() {
  const Lock lock(mutex_);
  if (session_) session_->turns = false;
}

void SyncPoint::forget() {
  Lock lock(mutex_);
  forget_ = true;
  wake_.notify_one();
  forgotten_.wait(lock, [this] { return !forget_; });
}

Status SyncPoint::failure() const {
  const Lock lock(mutex_);
  return failure_;
}

void SyncPoint::tell(uint64_t offset, Bytes* body) const {
  ckpt::DiskTell tell;
  tell.kind = ckpt::DiskAskKind::map;
  tell.offset = offset;
  tell.region_bytes = map_->region_bytes();
  // In this order: bits that belong to a newer point than the one that is told stand for less.
  tell.point = map_->point();
  const Bytes bits = map_->bits();
  if (map_->point() != tell.point) tell.point = {};
  if (offset < bits.size())
    tell.data =
        ckpt::View(bits).subspan(offset, std::min<size_t>(bits.size() - offset, ckpt::kMaxMapBytesTold));
  tell.bytes = tell.data.size();
  ckpt::encode(tell, body);
}

// ---- The threads.

void SyncPoint::run() {
  Lock lock(mutex_);
  for (;;) {
    const auto due = [this] { return quit_ || wanted_ || forget_ || flush_due() || flush_ == Flush::done; };
    if (session_ && session_->turns && session_->begun) {
      wake_.wait_until(lock, session_->next_turn, due);
    } else {
      wake_.wait(lock, due);
    }
    if (quit_) return;
    const Status status = work(lock);
    if (status.ok()) continue;
    failure_ = status.with_context("the map of what the disks' hosts have in common (" + options_.path + ")");
    session_.reset();
    lock.unlock();
    // What still stands in the file must not be believed.
    if (!map_->forget().ok()) ::unlink(options_.path.c_str());
    stored_();
    lock.lock();
  }
}

Status SyncPoint::work(Lock& lock) {
  if (forget_) {
    Status status = unlocked(lock, [this] { return map_->forget(); });
    forget_ = false;
    forgotten_.notify_all();
    return status;
  }
  if (std::exchange(wanted_, false)) return unlocked(lock, [this] { return map_->store(); });
  if (flush_ == Flush::done) return flushed(lock);
  if (!flush_due()) return {};
  session_->next_turn = Clock::now() + options_.turn;
  const TapPosition position = tap_.position();
  // A change that is still under way may reach the disk after it was flushed: then it is not its turn yet.
  if (session_->begun && position.oldest_under_way <= session_->last_change) return {};
  session_->last_change = position.newest_change;
  session_->open_epoch = position.open_epoch;
  session_->flushed_epoch = session_->durable;
  flush_ = Flush::asked;
  flush_wake_.notify_one();
  return {};
}

/// Due when a session is to begin and when it is time for a turn.
bool SyncPoint::flush_due() const {
  if (!session_ || flush_ != Flush::none) return false;
  if (!session_->begun) return session_->durable >= 1;
  return session_->turns && Clock::now() >= session_->next_turn;
}

/// The session may be another one than that for which it was begun: then it is flushed for that, too.
Status SyncPoint::flushed(Lock& lock) {
  flush_ = Flush::none;
  REMUSD_TRY(flush_status_);
  if (!session_ || session_->flushed_epoch == 0) return {};
  const Session now = *session_;
  session_->begun = true;
  if (now.begun)
    return unlocked(lock, [this, &now] {
      return map_->turn(now.open_epoch, now.flushed_epoch) ? map_->store() : Status();
    });
  REMUSD_TRY(unlocked(lock, [this, &now] { return map_->begin(now.id); }));
  if (!forget_) failure_ = {};  // Else it was lost again meanwhile.
  return {};
}

Status SyncPoint::unlocked(Lock& lock, const std::function<Status()>& job) {
  lock.unlock();
  const Status status = job();
  if (status.ok()) stored_();
  lock.lock();
  return status;
}

/// Not on the other thread: whoever writes to a region for the first time must not wait for it.
void SyncPoint::run_flusher() {
  Lock lock(mutex_);
  for (;;) {
    flush_wake_.wait(lock, [this] { return quit_ || flush_ == Flush::asked; });
    if (quit_) return;
    lock.unlock();
    Status status;
    for (const ScopedFd& file : flushed_)
      if (status.ok() && ::fdatasync(file.get()) != 0) status = Status::from_errno("flush the disks");
    lock.lock();
    flush_status_ = status;
    flush_ = Flush::done;
    wake_.notify_one();
  }
}

}  // namespace remusd::disk
