// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/disks.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "disk/journal.h"

namespace remusd::disk {
namespace {

// Room for some epochs beyond what may wait in memory.
constexpr uint64_t kJournalTimes = 2;

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

Disks::Disks(std::vector<LocalFile> files, const DisksOptions& options)
    : files_(std::move(files)), options_(options), tap_(options.limit_bytes) {
  tap_.on_room([this] {
    if (server_) server_->retry();
  });
}

Disks::~Disks() {
  replica_.reset();  // its threads may let flushes go
  server_.reset();   // before the tap, which it tells of changes
}

Result<std::unique_ptr<Disks>> Disks::open_files(const std::vector<DiskFile>& disks,
                                                 const DisksOptions& options) {
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
  return std::unique_ptr<Disks>(new Disks(std::move(files), options));
}

Status Disks::serve(const std::vector<DiskFile>& disks) {
  ServerOptions options;
  for (size_t i = 0; i < disks.size(); ++i)
    options.disks.push_back({disks[i].name, disks[i].socket_path, &files_[i], disks[i].read_only});
  options.observer = &tap_;
  REMUSD_ASSIGN(server_, Server::start(std::move(options)));
  return {};
}

Media Disks::media() const {
  Media media;
  for (const LocalFile& file : files_) media.push_back(std::make_shared<LocalMedium>(&file));
  return media;
}

/// After it the journal is gone: the guest's own writes are none of its business.
Status Disks::settle_journal() {
  const std::string& path = options_.journal_path;
  if (path.empty() || ::access(path.c_str(), F_OK) != 0) return {};
  REMUSD_ASSIGN(const LocalFile file, LocalFile::open(path));
  LocalMedium medium(&file);
  Recovered recovered;
  REMUSD_TRY(recover(medium, media(), &recovered).with_context("bring " + path + " to the disks"));
  if (recovered.state == ReplicaState::inconsistent)
    return {Code::unsafe, "the disks hold half a first sync (" + path +
                              "): nobody's state; copy them from where the guest ran, then remove that file"};
  if (::unlink(path.c_str()) != 0) return Status::from_errno("remove " + path);
  return {};
}

Result<std::unique_ptr<Disks>> Disks::open(const std::vector<DiskFile>& disks, const DisksOptions& options) {
  REMUSD_ASSIGN(std::unique_ptr<Disks> made, open_files(disks, options));
  REMUSD_TRY(made->settle_journal());
  REMUSD_TRY(made->serve(disks));
  return made;
}

Result<std::unique_ptr<Disks>> Disks::open_replica(const std::vector<DiskFile>& disks,
                                                   const DisksOptions& options, const ReplicaOptions& replica,
                                                   std::function<void()> changed) {
  // Before a disk is made: without a journal there is no use for it.
  REMUSD_TRY(make_journal_file(options.journal_path, kJournalTimes * options.limit_bytes));
  REMUSD_ASSIGN(std::unique_ptr<Disks> made, open_files(disks, options));
  REMUSD_ASSIGN(LocalFile file, LocalFile::open(options.journal_path));
  made->journal_ = std::make_unique<LocalFile>(std::move(file));
  Disks* disks_of_it = made.get();
  made->changed_ = std::move(changed);
  REMUSD_ASSIGN(made->replica_,
                Replica::open(made->media(), std::make_shared<LocalMedium>(made->journal_.get()), replica,
                              [disks_of_it] { disks_of_it->on_replica(); }));
  made->told_by_ = made->replica_.get();
  REMUSD_TRY(made->serve(disks));
  return made;
}

/// A thread of the replica's.
void Disks::on_replica() {
  const Replica* replica = told_by_.load();
  if (replica != nullptr && replica->released()) tap_.let_flushes();
  if (replica != nullptr && !replica->failure().ok()) {
    // Replayed later, it would go over what the guest was told to be durable.
    if (promoted_) ::unlink(options_.journal_path.c_str());
    tap_.let_flushes();
  }
  const std::lock_guard lock(changed_mutex_);
  if (changed_) changed_();
}

Status Disks::promote(Time deadline) {
  REMUSD_ASSERT(replica_ != nullptr && !promoted_, "a replica is promoted once");
  REMUSD_TRY(replica_->drain(deadline).with_context("bring what was committed to the disks"));
  {
    const std::lock_guard lock(changed_mutex_);
    changed_ = nullptr;
  }
  promoted_ = true;
  tap_.hold_flushes();
  replica_->release();
  if (replica_->released()) tap_.let_flushes();
  return {};
}

bool Disks::connected() const {
  for (size_t i = 0; i < files_.size(); ++i)
    if (counters(i).connections == 0) return false;
  return true;
}

std::vector<uint64_t> Disks::sizes() const {
  std::vector<uint64_t> sizes;
  for (const LocalFile& file : files_) sizes.push_back(file.bytes());
  return sizes;
}

}  // namespace remusd::disk
