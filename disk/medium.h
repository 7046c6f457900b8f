// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// What the replica, its journal and the first sync do to a file: the seam behind which tests put files that
// fail, hang, or lose power.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ckpt/disk_codec.h"
#include "disk/local_file.h"

namespace remusd::disk {

/// As LocalFile, whose contract it has. Thread-safe, but for writes that overlap.
class Medium {
 public:
  virtual ~Medium() = default;
  virtual uint64_t bytes() const = 0;
  virtual Status read(uint64_t offset, std::span<std::byte> out) = 0;
  virtual Status write(uint64_t offset, std::span<const std::byte> data) = 0;
  virtual Status zero(uint64_t offset, uint64_t bytes) = 0;
  virtual Status punch(uint64_t offset, uint64_t bytes) = 0;
  /// What was written before the call is on the medium when it returns.
  virtual Status flush() = 0;
  virtual Result<LocalFile::Run> next_data(uint64_t offset) = 0;
};

using Media = std::vector<std::shared_ptr<Medium>>;

/// The file outlives it.
class LocalMedium final : public Medium {
 public:
  explicit LocalMedium(const LocalFile* file) : file_(file) {}
  uint64_t bytes() const override { return file_->bytes(); }
  Status read(uint64_t offset, std::span<std::byte> out) override { return file_->read(offset, out); }
  Status write(uint64_t offset, std::span<const std::byte> data) override {
    return file_->write(offset, data);
  }
  Status zero(uint64_t offset, uint64_t bytes) override { return file_->zero(offset, bytes); }
  Status punch(uint64_t offset, uint64_t bytes) override { return file_->punch(offset, bytes); }
  Status flush() override { return file_->flush(); }
  Result<LocalFile::Run> next_data(uint64_t offset) override { return file_->next_data(offset); }

 private:
  const LocalFile* file_;
};

/// A decoded run of a DISK body: raw, zero or hole.
Status write_run(Medium& disk, const ckpt::DiskRun& run);
Status flush_all(const Media& media);

/// The files outlive them.
inline Media media_of(std::span<const LocalFile> files) {
  Media media;
  for (const LocalFile& file : files) media.push_back(std::make_shared<LocalMedium>(&file));
  return media;
}

inline std::vector<uint64_t> sizes_of(const Media& media) {
  std::vector<uint64_t> sizes;
  for (const auto& medium : media) sizes.push_back(medium->bytes());
  return sizes;
}

}  // namespace remusd::disk
