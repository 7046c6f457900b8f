// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Disks of two hosts compared by what one tells of its own (ckpt/disk_digest.h): both read, little is sent.
// Blocks of 4 KiB; what the file system says to be a hole is not read.
#pragma once

#include <functional>

#include "ckpt/disk_digest.h"
#include "disk/medium.h"

namespace remusd::disk {

/// Appends the DISK_TELL that answers `ask`: of the run's beginning, as much as one answer has room for.
/// REQUIRES: a `blocks` ask that begins within the disk.
Status tell_blocks(Medium& disk, const ckpt::DiskAsk& ask, uint64_t epoch, ckpt::Bytes* body);

/// Calls `differs` for the runs of our disk, raw or hole, that are not what was told, in order; data is valid
/// for the call. Stops at its first failure and returns it. *buffer is scratch.
/// REQUIRES: what was told lies within the disk.
Status compare_blocks(Medium& disk, const ckpt::DiskTell& told, const ckpt::DigestKey& key,
                      ckpt::Bytes* buffer, const std::function<Status(const ckpt::DiskRun& run)>& differs);

}  // namespace remusd::disk
