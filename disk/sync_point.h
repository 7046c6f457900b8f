// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What a guest's disks on this host have in common with those on the other one: the point at which both were
// equal, named by the session that brought them there, and the map of what was written here since
// (dirty_map.h). Two hosts with the same point need to look only where one of their maps says so.
//
//   begin_session() --durable(1)--> a new point --durable(k), a minute apart--> a smaller map
//   end_session(): the map only grows
//
// The local disks are flushed before they are said to be what the other host has: it may be older than that
// after a loss of power otherwise. They are flushed on descriptors of their own, so that a failure is told to
// the guest's flush, too. When the map cannot be kept any more the point is forgotten: the next resync looks
// at everything.
//
// Threads: "diskmap" does all I/O on the map, "diskflush" flushes the disks. touch from the server's thread,
// the rest from any.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "ckpt/clock.h"
#include "ckpt/disk_digest.h"
#include "disk/dirty_map.h"
#include "disk/local_file.h"
#include "disk/tap.h"

namespace remusd::disk {

struct SyncPointOptions {
  std::string path;
  Duration turn = std::chrono::seconds(60);
};

class SyncPoint final : public ChangeGate {
 public:
  /// The file is made when there is none for such disks. `tap` outlives it, and so do the files. `stored` is
  /// called, without a lock, when changes that touch() was false for may be asked for again.
  static Result<std::unique_ptr<SyncPoint>> open(const SyncPointOptions& options,
                                                 std::span<const LocalFile> files, const Tap& tap,
                                                 std::function<void()> stored);
  /// The files are not written to any more.
  ~SyncPoint() override;
  SyncPoint(const SyncPoint&) = delete;
  SyncPoint& operator=(const SyncPoint&) = delete;

  /// As DirtyMap::touch().
  bool touch(const Change& change) override;
  /// Then the replica may have what the disk has not, and no map says so: the next resync looks at
  /// everything.
  void failed(const Change& change) override;
  /// A session begins; nothing of it is on both hosts. `turns`: this is the side on which the guest runs.
  void begin_session(const ckpt::SessionId& session, bool turns);
  /// `epoch` and all before it are durable on the backup.
  void durable(uint64_t epoch);
  void end_session();
  /// What is known is not right: the next resync looks at everything. May block.
  void forget();

  const DirtyMap& map() const { return *map_; }
  /// The answer to an ask of this kind.
  void tell(uint64_t offset, ckpt::Bytes* body) const;
  /// Why the point was lost; ok when it was not.
  Status failure() const;

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Session {
    ckpt::SessionId id{};
    bool turns = false, begun = false;
    uint64_t durable = 0;
    Time next_turn{};
    // As things were before the flush that is under way, or was the last.
    uint64_t last_change = 0, open_epoch = 0, flushed_epoch = 0;
  };
  enum class Flush { none, asked, done };
  SyncPoint(const SyncPointOptions& options, std::unique_ptr<LocalFile> file, std::vector<ScopedFd> flushed,
            const Tap& tap, std::function<void()> stored);
  void run();
  void run_flusher();
  bool flush_due() const;
  Status work(Lock& lock);
  Status flushed(Lock& lock);
  Status unlocked(Lock& lock, const std::function<Status()>& job);
  uint64_t look() const;

  const SyncPointOptions options_;
  const std::unique_ptr<LocalFile> file_;  // of the map
  LocalMedium medium_;
  const std::vector<ScopedFd> flushed_;  // the disks, once more
  const Tap& tap_;
  const std::function<void()> stored_;
  std::unique_ptr<DirtyMap> map_;

  mutable std::mutex mutex_;
  std::condition_variable wake_, flush_wake_, forgotten_;
  std::optional<Session> session_;
  bool wanted_ = false, forget_ = false, quit_ = false;
  Flush flush_ = Flush::none;
  Status failure_, flush_status_;
  std::thread thread_, flusher_;  // last: they use the rest
};

}  // namespace remusd::disk
