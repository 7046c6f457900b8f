// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The work on one served disk: requests that were checked, and admitted, become operations on its local file.
//
// Changes that overlap are made one after the other (change_order.h). Flushes, and writes that are to be on
// the medium when they are answered, are made good together: while one flush of the file runs, those that
// come gather for the next. A flush that failed proves that something written is lost, and the kernel tells
// so only once: from then on (`broken`) none of them succeeds any more. When nothing was changed since the
// last one there is nothing to make good, and the file is not asked: the hypervisor flushes twice in each
// pause.
//
// What may wait for a device is given to the ring, which hands it to a thread where a file system cannot do
// it otherwise. What only might is done here, as long as it turns out not to (promptness.h): a small write,
// which ends in the page cache, and the flush of a client that does nothing else meanwhile. A large write is
// copied by another thread while this one takes more from the socket. Reads are first tried in the page
// cache; what that has of a large one leaves it without a copy (page_pipe.h).
//
// A client that has flushed each of its last single writes will flush the next one: that is made good while
// the client is still busy with the answer (sync_ahead), and its flush finds nothing left to do.
#pragma once

#include <span>
#include <vector>

#include "disk/job.h"
#include "disk/local_file.h"
#include "disk/operation.h"
#include "disk/page_pipe.h"
#include "disk/promptness.h"

namespace remusd::disk {

class Drive {
 public:
  /// Most extents that one block status tells of.
  static constexpr size_t kMaxExtents = 256;

  /// Hears what became of jobs.
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual void done(Job* job, int error) = 0;  // errno value
    virtual void flushed_later(int error) = 0;
    virtual void changed(Job* job, int error) = 0;  // a change has been made, or has failed; before done()
    virtual bool one_job() const = 0;               // there is one, over all disks
  };

  Drive(const LocalFile& file, OperationRing* ring, Owner* owner);

  const LocalFile& file() const { return file_; }
  bool broken() const { return broken_; }
  /// All that was made is on the medium.
  bool clean() const { return !broken_ && made_ == made_good_; }

  /// Whether all of a large read went from the page cache to `pages` as it is. If not, read() does it.
  bool pass(const nbd::Request& request, PagePipe* pages);
  /// Each ends in Owner::done(), perhaps before it returns.
  void read(Job* job);
  void change(Job* job);
  void flush(Job* job);
  void cache(Job* job);
  /// Asks the file system where data lies (lseek): that looks at metadata only, and does not leave the
  /// thread.
  void extents(Job* job);
  /// What was kept goes over what these two have found.
  static void lay_over(const KeptRun& kept, Job* job);

  /// Somebody else has changed the file: what was flushed says nothing any more.
  void doubt() { ++made_; }

  /// Flushes the file for nobody; ends in Owner::flushed_later(), once for each call.
  void flush_later();

  /// A change that leaves zeros, and keeps the room that its run has on the disk.
  static bool keeps_room(const nbd::Request& request) {
    return request.command == nbd::Command::write_zeroes && request.has(nbd::kNoHole);
  }

  /// When no job is under way and answers have left: makes good what will be flushed next.
  void sync_ahead();

  void completed(Job* job, int result);

 private:
  /// So many single writes in a row were each followed by a flush: the next one will be.
  static constexpr unsigned kSureAfter = 4;

  void foresee(const nbd::Request& request);
  bool syncs_promptly() const { return later_now_ == 0 && prompt_syncs_.expected(); }
  int sync_file();
  void synced(int result);
  void start_sync();
  void read_rest(Job* job);
  void make(Job* job);
  bool write_directly(Job* job);
  bool sync_directly();
  void made(Job* job, int error);

  const LocalFile& file_;
  OperationRing* ring_;
  Owner* owner_;
  bool in_memory_ = false, cache_reads_ = true, broken_ = false, syncing_ = false;
  Promptness prompt_passes_, prompt_writes_, prompt_syncs_;
  unsigned changes_since_flush_ = 0, flushed_singly_ = 0;
  ChangeOrder order_;
  std::vector<ChangeOrder::Entry*> ready_;
  std::vector<Job*> synced_now_, synced_next_;
  size_t later_now_ = 0, later_next_ = 0;
  // Changes so far (what lay there before us is one), those before the sync that runs, and those that the
  // last one has made good.
  uint64_t made_ = 1, made_syncing_ = 0, made_good_ = 0;
  Calls<Drive, &Drive::synced> sync_{this};
};

}  // namespace remusd::disk
