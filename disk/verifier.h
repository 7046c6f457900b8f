// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Compares a protected guest's disks with their replica, whole, while the guest runs: by digests, so that
// little goes over the link.
//
// A pass begins with an epoch that is open: once it is acknowledged, and what had begun before is done, a
// block that the guest has not touched since then must be the same on both hosts. One that it has touched,
// and that differs, is looked at in the next pass; what is touched in every pass is told as busy.
//
// Bounds: two bits for each block (block_marks.h), and the first kMaxTold places that differ.
//
// Threads: its own ("diskverify") reads and compares; the rest from any.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "disk/block_marks.h"
#include "disk/inquiry.h"
#include "disk/local_file.h"
#include "disk/tap.h"

namespace remusd::disk {

struct VerifyProgress {
  enum class State { none, running, equal, different, failed };
  struct Place {
    size_t disk = 0;
    uint64_t offset = 0;
  };
  State state = State::none;
  Status failure;            // of failed
  uint64_t total_bytes = 0;  // of all disks
  uint64_t compared_bytes = 0;
  uint64_t different_bytes = 0;
  uint64_t busy_bytes = 0;    // that the guest changed whenever they were looked at
  std::vector<Place> places;  // that differ, the first ones
};
std::string_view to_string(VerifyProgress::State state);

class Verifier {
 public:
  static constexpr size_t kMaxTold = 16;
  static constexpr int kMaxPasses = 8;

  /// Begins at once. Files, tap and inquiry outlive it; nobody else asks meanwhile.
  /// REQUIRES: the tap logs.
  Verifier(std::span<const LocalFile> files, Tap& tap, Inquiry& inquiry);
  /// Ends it. REQUIRES: the inquiry is stopped, or it has ended.
  ~Verifier();
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  VerifyProgress progress() const;
  bool ended() const;

 private:
  Status verify();
  /// Both hosts have the same one.
  Status begin_pass(uint64_t* epoch);
  Status compare(size_t disk, uint64_t offset, uint64_t bytes, uint64_t epoch);
  Status tell(size_t disk, uint64_t offset, uint64_t bytes, uint64_t epoch, ckpt::DiskTell* told);
  void differs(size_t disk, const ckpt::DiskRun& run);

  const std::span<const LocalFile> files_;
  Tap& tap_;
  Inquiry& inquiry_;
  const ckpt::DigestKey key_;
  std::vector<BlockMarks> touched_;  // since the pass began; set on the server's thread
  std::vector<BlockMarks> busy_;     // to be looked at again
  ckpt::Bytes buffer_, answer_;

  mutable std::mutex mutex_;
  VerifyProgress progress_;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace remusd::disk
