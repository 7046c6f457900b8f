// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The guest's kernel and initrd on the backup: found here by their digest, or received from the primary.
// A file is known only by what it contains; the name under files_dir is its digest.
//
// digest: XXH3-128 of the content, canonical (big-endian) form, 32 lower-case hexadecimal digits. It tells
// versions of a file apart; it is no defence against a peer, who chooses the guest anyway.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/records.h"
#include "ckpt/scoped_fd.h"
#include "ckpt/status.h"
#include "guest/definition.h"

namespace remusd::backup {

/// XXH3-128 of a file's content in hex.
Result<std::string> digest_of_file(const std::string& path);

class BootFiles {
 public:
  explicit BootFiles(std::string files_dir) : dir_(std::move(files_dir)) {}
  ~BootFiles();

  /// Reads the body of a DEFINITION record: the guest's definition, and the files that it names. Looks for
  /// each file here; needs() is what is missing then.
  Status open(std::string_view json, guest::Definition* definition);
  const ckpt::NeedFiles& needs() const { return needs_; }

  /// One part of a missing file: parts come file by file in the order of needs(), each without a gap. A file
  /// that is whole is checked, made durable and given its name.
  Status add(const ckpt::FilePart& part);
  bool complete() const { return arriving_ == needs_.files.size(); }

  /// Points the definition at the local files. REQUIRES: complete().
  void localize(guest::Definition* definition) const;

 private:
  struct Known {
    std::string role, path;
  };
  Status find(const std::string& role, const std::string& digest, uint64_t bytes, const std::string& given);
  Status close_file(const ckpt::FileNeed& need);
  void drop_part();

  std::string dir_;
  ckpt::NeedFiles needs_;
  std::vector<Known> known_;
  size_t arriving_ = 0;  // index into needs_ of the file that comes next
  ScopedFd part_;        // of that file
  std::string part_path_;
  uint64_t part_bytes_ = 0;
};

}  // namespace remusd::backup
