// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/disks.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "disk/copier.h"
#include "disk/journal.h"

namespace remusd::disk {
namespace {

/// The largest epoch, another one beside it, and something for tables.
constexpr uint64_t journal_bytes(uint64_t limit_bytes) {
  return std::min(2 * limit_bytes + kMaxBeyondBound + (4u << 20), kMaxJournalBytes);
}

/// A sparse file of so many bytes, unless there is something.
Status make_missing(const std::string& path, uint64_t bytes) {
  const ScopedFd made(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!made) return errno == EEXIST ? Status() : Status::from_errno("make disk " + path);
  if (::ftruncate(made.get(), static_cast<off_t>(bytes)) == 0) return {};
  Status status = Status::from_errno("make disk " + path + " " + std::to_string(bytes) + " bytes long");
  ::unlink(path.c_str());
  return status;
}

/// Another disk than the replica's: nothing is ever written to it through here.
class OtherMedium final : public Medium {
 public:
  explicit OtherMedium(uint64_t bytes) : bytes_(bytes) {}
  uint64_t bytes() const override { return bytes_; }
  Status read(uint64_t, std::span<std::byte>) override { return wrong(); }
  Status write(uint64_t, std::span<const std::byte>) override { return wrong(); }
  Status zero(uint64_t, uint64_t) override { return wrong(); }
  Status punch(uint64_t, uint64_t) override { return wrong(); }
  Status flush() override { return {}; }
  Result<LocalFile::Run> next_data(uint64_t) override { return LocalFile::Run{bytes_, bytes_}; }

 private:
  static Status wrong() { return {Code::corrupt, "a held disk has no replica"}; }
  const uint64_t bytes_;
};

/// Nobody tells when another host lets go of a lock.
constexpr Duration kLockRetry = std::chrono::milliseconds(20);

/// So long one attempt of the settler's may take: between two it looks at what else is to be done.
constexpr Duration kLockPatience = std::chrono::milliseconds(50);

/// A disk that hangs longer keeps its journal.
constexpr Duration kReleasePatience = std::chrono::seconds(5);

uint32_t set_of_held(const std::vector<DiskFile>& disks) {
  uint32_t held = 0;
  for (size_t i = 0; i < disks.size(); ++i)
    if (disks[i].held) held |= uint32_t{1} << i;
  return held;
}

std::vector<bool> flags_of_held(const std::vector<DiskFile>& disks) {
  std::vector<bool> held;
  for (const DiskFile& disk : disks) held.push_back(disk.held);
  return held;
}

}  // namespace

Disks::Disks(std::vector<LocalFile> files, const std::vector<DiskFile>& disks, const DisksOptions& options)
    : files_(std::move(files)),
      held_(flags_of_held(disks)),
      options_(options),
      tap_(options.limit_bytes, set_of_held(disks), [this] { return note_held(); }) {
  tap_.on_room([this] {
    if (server_) server_->retry();
  });
  if (tap_.held_disks() == 0) return;
  SettlerOptions settler;
  settler.disks = media_of(files_);
  settler.lock = [this] { return lock_held(Clock::now() + kLockPatience); };
  settler.unlock = [this] { unlock_held(); };
  settler.drained = [this] { forget_held(); };
  settler_ = std::make_unique<Settler>(tap_, std::move(settler));
}

Disks::~Disks() {
  // The guest may live on without us, and its disks be opened again: a journal that is replayed then would go
  // over what it has written since it was promoted.
  if (promoted_ && replica_) (void)replica_->await_release(Clock::now() + kReleasePatience);
  settler_.reset();  // their threads may let changes and flushes go
  replica_.reset();
  server_.reset();  // before the tap, which it tells of changes
  point_.reset();   // nobody writes any more
}

Status Disks::open_map() {
  if (options_.map_path.empty() || std::ranges::find(held_, false) == held_.end()) return {};
  SyncPointOptions options;
  options.path = options_.map_path;
  REMUSD_ASSIGN(point_, SyncPoint::open(options, files_, tap_, [this] {
                  if (server_) server_->retry();
                }));
  tap_.guard(point_.get());
  return {};
}

/// A daemon that finds it knows that the guest remembers more than its disks have.
Status Disks::note_held() const {
  if (options_.held_path.empty()) return {};
  const ScopedFd made(::open(options_.held_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  return made ? Status() : Status::from_errno("make " + options_.held_path);
}

void Disks::forget_held() const {
  if (!options_.held_path.empty()) (void)::unlink(options_.held_path.c_str());
}

Status Disks::lock_held(Time deadline) {
  for (;;) {
    Status status;
    for (size_t i = 0; i < files_.size() && status.ok(); ++i)
      if (held_[i]) status = files_[i].lock();
    if (status.code() != Code::unsafe || Clock::now() >= deadline) return status;
    std::this_thread::sleep_for(kLockRetry);
  }
}

void Disks::unlock_held() const {
  for (size_t i = 0; i < files_.size(); ++i)
    if (held_[i]) files_[i].unlock();
}

Result<std::unique_ptr<Disks>> Disks::open_files(const std::vector<DiskFile>& disks,
                                                 const DisksOptions& options, bool standby) {
  if (disks.size() > kMaxDisks)
    return Status(Code::invalid, "a guest may have " + std::to_string(kMaxDisks) + " disks, not " +
                                     std::to_string(disks.size()));
  std::vector<LocalFile> files;
  for (const DiskFile& disk : disks) {
    if (disk.bytes > 0 && !disk.held) REMUSD_TRY(make_missing(disk.path, disk.bytes));
    // Of a held one the other host has the lock as long as its guest runs there.
    REMUSD_ASSIGN(LocalFile file, disk.held ? LocalFile::open_unlocked(disk.path, disk.read_only)
                                            : LocalFile::open(disk.path, disk.read_only));
    if (!standby && disk.held) REMUSD_TRY(file.lock());
    if (disk.bytes > 0 && !disk.held) REMUSD_TRY(file.fit(disk.bytes).with_context(disk.name));
    if (disk.bytes > 0 && disk.held && file.bytes() != disk.bytes)
      return Status(Code::unsafe, "disk " + disk.name + ": " + disk.path + " has " +
                                      std::to_string(file.bytes()) + " bytes here, and " +
                                      std::to_string(disk.bytes) + " on the primary");
    files.push_back(std::move(file));
  }
  std::unique_ptr<Disks> made(new Disks(std::move(files), disks, options));
  for (const DiskFile& disk : disks) made->names_.push_back(disk.name);
  return made;
}

Status Disks::serve(const std::vector<DiskFile>& disks) {
  ServerOptions options;
  for (size_t i = 0; i < disks.size(); ++i)
    options.disks.push_back({disks[i].name, disks[i].socket_path, &files_[i], disks[i].read_only});
  options.observer = &tap_;
  REMUSD_ASSIGN(server_, Server::start(std::move(options)));
  return {};
}

uint64_t Disks::protection_bytes() const {
  return tap_.stats().limit_bytes + Copier::limit_bytes(files_.size());
}

Media Disks::media() const {
  Media media;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (held_[i])
      media.push_back(std::make_shared<OtherMedium>(files_[i].bytes()));
    else
      media.push_back(std::make_shared<LocalMedium>(&files_[i]));
  }
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
  REMUSD_ASSIGN(std::unique_ptr<Disks> made, open_files(disks, options, /*standby=*/false));
  REMUSD_TRY(made->settle_journal());
  REMUSD_TRY(made->open_map());
  REMUSD_TRY(made->serve(disks));
  return made;
}

Result<std::unique_ptr<Disks>> Disks::open_replica(const std::vector<DiskFile>& disks,
                                                   const DisksOptions& options, const ReplicaOptions& replica,
                                                   std::function<void()> changed) {
  const bool all_held = std::all_of(disks.begin(), disks.end(), [](const auto& disk) { return disk.held; });
  // Before a disk is made: without a journal there is no use for it.
  if (!all_held) REMUSD_TRY(make_journal_file(options.journal_path, journal_bytes(options.limit_bytes)));
  REMUSD_ASSIGN(std::unique_ptr<Disks> made, open_files(disks, options, /*standby=*/true));
  if (all_held) {
    REMUSD_TRY(made->serve(disks));
    return made;
  }
  REMUSD_ASSIGN(LocalFile file, LocalFile::open(options.journal_path));
  made->journal_ = std::make_unique<LocalFile>(std::move(file));
  Disks* disks_of_it = made.get();
  made->changed_ = std::move(changed);
  REMUSD_TRY(made->open_map());
  made->replay_journal();
  REMUSD_TRY(made->reread_replica());
  if (made->point_) made->point_->begin_session(replica.session, /*turns=*/false);
  REMUSD_ASSIGN(made->replica_,
                Replica::open(made->media(), std::make_shared<LocalMedium>(made->journal_.get()), replica,
                              [disks_of_it] { disks_of_it->on_replica(); }));
  made->told_by_ = made->replica_.get();
  REMUSD_TRY(made->serve(disks));
  return made;
}

/// An earlier replica's last epochs may be in its journal only: with them the disks are what the sync point's
/// map says, without them everything may differ.
void Disks::replay_journal() {
  LocalMedium medium(journal_.get());
  Recovered recovered;
  const bool good = recover(medium, media(), &recovered).ok();
  if (!good && point_) point_->forget();
}

/// What is told of a replica is what lies on its disks.
Status Disks::reread_replica() const {
  for (size_t i = 0; i < files_.size(); ++i)
    if (!held_[i] && !files_[i].read_only()) REMUSD_TRY(files_[i].reread());
  return {};
}

void Disks::begin_session(const ckpt::SessionId& session) {
  if (point_) point_->begin_session(session, /*turns=*/true);
}
void Disks::durable(uint64_t epoch) {
  if (point_) point_->durable(epoch);
}
void Disks::end_session() {
  if (point_) point_->end_session();
}
void Disks::forget_sync_point() {
  if (point_) point_->forget();
}

Status Disks::ask(const ckpt::DiskAsk& ask) {
  if (ask.kind == ckpt::DiskAskKind::blocks) return replica_->ask(ask);
  REMUSD_TRY(map_answers_.asked());
  ckpt::Bytes body;
  if (point_) {
    point_->tell(ask.offset, &body);
  } else {
    ckpt::DiskTell tell;
    tell.offset = ask.offset;
    tell.region_bytes = DirtyMap::region_bytes_for(sizes());
    ckpt::encode(tell, &body);
  }
  map_answers_.put(std::move(body));
  return {};
}

bool Disks::told(ckpt::Bytes* body) {
  return map_answers_.take(body) || (replica_ && replica_->told(body));
}

/// A thread of the replica's.
void Disks::on_replica() {
  const Replica* replica = told_by_.load();
  if (replica != nullptr && point_) point_->durable(replica->durable_epoch());
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
  REMUSD_ASSERT(!promoted_, "a replica is promoted once");
  forget_held();  // An earlier guest's.
  if (replica_ == nullptr) {
    promoted_ = true;
    return {};
  }
  REMUSD_TRY(replica_->drain(deadline).with_context("bring what was committed to the disks"));
  {
    const std::lock_guard lock(changed_mutex_);
    changed_ = nullptr;
  }
  promoted_ = true;
  tap_.hold_flushes();
  server_->doubt();
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
