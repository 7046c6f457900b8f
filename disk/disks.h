// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A guest's disks on this host, as long as it is here: running, or waiting as a replica. Holds the local
// files (locked), the NBD server that its hypervisor is connected to, the tap between the two and, where a
// replica is kept, what applies epochs to it.
//
//   open() --guest runs--> tap()                     open() --begin_replica()--> replica() --end_replica()-->
//   tap()
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ckpt/status.h"
#include "disk/local_file.h"
#include "disk/tap.h"

namespace remusd::disk {

/// Of one disk. bytes 0: whatever the file has; otherwise it must have so many, and a file that is not there
/// is made, empty.
struct DiskFile {
  std::string name;
  std::string path;
  std::string socket_path;  // the hypervisor connects here; empty: nobody does
  uint64_t bytes = 0;
  bool read_only = false;
};

class Disks {
 public:
  /// `limit_bytes`: of the tap (tap.h).
  static Result<std::unique_ptr<Disks>> open(const std::vector<DiskFile>& disks, uint64_t limit_bytes);
  Disks(const Disks&) = delete;
  Disks& operator=(const Disks&) = delete;

  std::span<const LocalFile> files() const { return files_; }
  std::vector<uint64_t> sizes() const;
  Tap& tap() { return tap_; }

 private:
  Disks(std::vector<LocalFile> files, uint64_t limit_bytes) : files_(std::move(files)), tap_(limit_bytes) {}

  std::vector<LocalFile> files_;
  Tap tap_;
};

}  // namespace remusd::disk
