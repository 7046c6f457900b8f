// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Random epochs of a guest with two small disks, as DISK bodies and as what the disks are after each.
#pragma once

#include <array>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "ckpt/disk_codec.h"

namespace remusd::disk {

inline constexpr std::array<uint64_t, 2> kEpochDisks{48u << 10, 16u << 10};
inline constexpr uint64_t kReplicaGeneration = 3;
inline constexpr ckpt::SessionId kReplicaSession{9, 8, 7};
using DiskImages = std::array<std::vector<std::byte>, 2>;

class Epochs {
 public:
  explicit Epochs(uint32_t seed) : random_(seed) {
    DiskImages image;
    for (size_t disk = 0; disk < image.size(); ++disk) image[disk] = noise(kEpochDisks[disk]);
    images_ = {DiskImages(), image};
  }

  /// What the disks are after an epoch, from 1 on.
  const DiskImages& image(uint64_t epoch) const { return images_.at(epoch); }
  uint64_t last() const { return images_.size() - 1; }
  /// The newest epoch up to this one that changed something.
  uint64_t changed(uint64_t epoch) const {
    while (epoch > 1 && images_.at(epoch) == images_.at(epoch - 1)) --epoch;
    return epoch;
  }

  /// All of epoch 1.
  std::vector<ckpt::Bytes> first() {
    std::vector<ckpt::Bytes> bodies;
    for (uint16_t disk = 0; disk < kEpochDisks.size(); ++disk) {
      for (uint64_t at = 0; at < kEpochDisks[disk]; at += kPart)
        add({disk, at, kPart, ckpt::DiskEncoding::raw, ckpt::View(images_[1][disk]).subspan(at, kPart)},
            &bodies);
      end(&bodies);
    }
    return bodies;
  }
  /// The next epoch: nothing, or some runs in one body or more.
  std::vector<ckpt::Bytes> next() {
    DiskImages image = images_.back();
    std::vector<ckpt::Bytes> bodies;
    const auto runs = random_() % 5 == 0 ? 0 : 1 + random_() % 6;
    for (uint64_t i = 0; i < runs; ++i) {
      const auto disk = static_cast<uint16_t>(random_() % 2);
      const auto bytes = static_cast<uint32_t>(1 + random_() % (random_() % 4 == 0 ? 6000 : 700));
      const uint64_t offset = random_() % (kEpochDisks[disk] - bytes + 1);
      const auto kind = random_() % 6;
      std::vector<std::byte> data(bytes);
      if (kind > 1) data = kind == 2 ? std::vector<std::byte>(bytes, std::byte{'x'}) : noise(bytes);
      const auto encoding = kind == 0   ? ckpt::DiskEncoding::hole
                            : kind == 1 ? ckpt::DiskEncoding::zero
                                        : ckpt::DiskEncoding::raw;
      add({disk, offset, bytes, encoding, kind > 1 ? ckpt::View(data) : ckpt::View()}, &bodies);
      if (random_() % 3 == 0) end(&bodies);
      std::memcpy(image[disk].data() + offset, data.data(), bytes);
    }
    end(&bodies);
    images_.push_back(std::move(image));
    return bodies;
  }

  std::vector<std::byte> noise(size_t size) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_());
    return bytes;
  }
  std::mt19937& random() { return random_; }

 private:
  static constexpr uint32_t kPart = 8u << 10;

  void add(const ckpt::DiskRun& run, std::vector<ckpt::Bytes>* bodies) {
    if (body_.add(run)) return;
    end(bodies);
    REMUSD_ASSERT(body_.add(run), "an empty body takes a run");
  }
  void end(std::vector<ckpt::Bytes>* bodies) {
    if (!body_.empty()) body_.take(&bodies->emplace_back());
  }

  std::mt19937 random_;
  ckpt::DiskBody body_;
  std::vector<DiskImages> images_;
};

}  // namespace remusd::disk
