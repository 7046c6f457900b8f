// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/dirty_map.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "ckpt/wire.h"

namespace remusd::disk {
namespace {

using ckpt::Bytes;

constexpr uint64_t kMapMagic = 0x3250414d444d4552;  // "REMDMAP2"
constexpr size_t kBitmaps = 6;                      // in memory, with what store() writes

uint64_t regions_of(std::span<const uint64_t> disk_bytes, uint64_t region_bytes) {
  uint64_t regions = 0;
  for (const uint64_t bytes : disk_bytes) regions += (bytes + region_bytes - 1) / region_bytes;
  return regions;
}

bool has(const std::vector<uint64_t>& bits, uint64_t region) {
  return ((bits[region / 64] >> (region % 64)) & 1) != 0;
}
void set(uint64_t region, std::vector<uint64_t>* bits) {
  (*bits)[region / 64] |= uint64_t{1} << (region % 64);
}
/// There are so many regions; the last word may have room for more.
void cut_tail(uint64_t regions, std::vector<uint64_t>* bits) {
  if (regions % 64 != 0) bits->back() &= (uint64_t{1} << (regions % 64)) - 1;
}

}  // namespace

uint64_t DirtyMap::region_bytes_for(std::span<const uint64_t> disk_bytes) {
  uint64_t region_bytes = kLeastRegionBytes;
  while (regions_of(disk_bytes, region_bytes) * kBitmaps / 8 > kMostMemoryBytes - kBlockBytes)
    region_bytes *= 2;
  return region_bytes;
}

uint64_t DirtyMap::file_bytes_for(std::span<const uint64_t> disk_bytes) {
  const uint64_t regions = regions_of(disk_bytes, region_bytes_for(disk_bytes));
  return kBlockBytes * (1 + (regions + kRegionsPerBlock - 1) / kRegionsPerBlock);
}

DirtyMap::DirtyMap(Medium& file, std::span<const uint64_t> disk_bytes, uint64_t identity)
    : file_(file),
      disk_bytes_(disk_bytes.begin(), disk_bytes.end()),
      region_bytes_(region_bytes_for(disk_bytes)),
      identity_(identity) {
  first_.push_back(0);
  for (const uint64_t bytes : disk_bytes_)
    first_.push_back(first_.back() + (bytes + region_bytes_ - 1) / region_bytes_);
  const size_t words = (first_.back() + 63) / 64;
  for (Bits* bits : {&wanted_, &stored_, &now_, &before_}) bits->resize(words);
  changed_.resize((first_.back() + kRegionsPerBlock - 1) / kRegionsPerBlock);
}

Result<std::unique_ptr<DirtyMap>> DirtyMap::open(Medium& file, std::span<const uint64_t> disk_bytes,
                                                 const Files& files) {
  if (file.bytes() < file_bytes_for(disk_bytes))
    return Status(Code::invalid, "map of changed regions: the file has " + std::to_string(file.bytes()) +
                                     " bytes, the disks need " + std::to_string(file_bytes_for(disk_bytes)));
  std::unique_ptr<DirtyMap> map(new DirtyMap(file, disk_bytes, files.identity));
  REMUSD_TRY(map->load(files.look));
  return map;
}

Bytes DirtyMap::header(const ckpt::SessionId& point, uint64_t look) const {
  Bytes out;
  ckpt::put(kMapMagic, &out);
  ckpt::put(region_bytes_, &out);
  ckpt::put(identity_, &out);
  ckpt::put(uint64_t{disk_bytes_.size()}, &out);
  ckpt::put_bytes(std::as_bytes(std::span(disk_bytes_)), &out);
  ckpt::put(look, &out);
  ckpt::put(point, &out);
  ckpt::put(uint64_t{XXH3_64bits(out.data(), out.size())}, &out);
  out.resize(kBlockBytes);
  return out;
}

Status DirtyMap::write_header(const ckpt::SessionId& point, uint64_t look) {
  REMUSD_TRY(file_.write(0, header(point, look)));
  return file_.flush();
}

/// As it is wanted.
Bytes DirtyMap::block(size_t number) const {
  static_assert(kRegionsPerBlock % 64 == 0, "a block is made of whole words");
  const size_t first = number * (kRegionsPerBlock / 64);
  const size_t count = std::min<size_t>(kRegionsPerBlock / 64, wanted_.size() - first);
  Bytes out;
  ckpt::put_bytes(std::as_bytes(std::span(wanted_).subspan(first, count)), &out);
  out.resize(kBitsBytes);
  ckpt::put(uint64_t{XXH3_64bits_withSeed(out.data(), out.size(), number + 1)}, &out);
  return out;
}

Status DirtyMap::load(uint64_t look) {
  Bytes read(kBlockBytes);
  REMUSD_TRY(file_.read(0, read));
  // What stands before them is the same in every header of these disks.
  const size_t at = (4 + disk_bytes_.size()) * sizeof(uint64_t);
  uint64_t left = 0;
  ckpt::SessionId point{};
  std::memcpy(&left, read.data() + at, sizeof left);
  std::memcpy(&point, read.data() + at + sizeof left, sizeof point);
  const bool ours = read == header(point, left) && (left == 0 || left == look);
  if (!ours || point == ckpt::SessionId{}) return forget();
  REMUSD_TRY(load_blocks());
  // Nobody may rely on it before it is written anew, and says that it is in use.
  std::fill(changed_.begin(), changed_.end(), true);
  tracks_ = true;
  point_ = point;
  REMUSD_TRY(write_header(point, 0));
  return store();
}

Status DirtyMap::load_blocks() {
  Bytes read(kBlockBytes);
  for (size_t number = 0; number < changed_.size(); ++number) {
    const size_t first = number * (kRegionsPerBlock / 64);
    const size_t count = std::min<size_t>(kRegionsPerBlock / 64, wanted_.size() - first);
    REMUSD_TRY(file_.read((1 + number) * kBlockBytes, read));
    uint64_t checksum = 0;
    std::memcpy(&checksum, read.data() + kBitsBytes, sizeof checksum);
    if (checksum == XXH3_64bits_withSeed(read.data(), kBitsBytes, number + 1)) {
      std::memcpy(wanted_.data() + first, read.data(), count * 8);
    } else {
      std::fill_n(wanted_.begin() + static_cast<ptrdiff_t>(first), count, ~uint64_t{0});
    }
  }
  cut_tail(first_.back(), &wanted_);
  return {};
}

ckpt::SessionId DirtyMap::point() const {
  const std::lock_guard lock(mutex_);
  return point_;
}

void DirtyMap::begin_session() {
  const std::lock_guard lock(mutex_);
  for (Bits* bits : {&now_, &before_}) std::fill(bits->begin(), bits->end(), 0);
  begun_ = false;
}

Status DirtyMap::begin(const ckpt::SessionId& point) {
  {
    const std::lock_guard lock(mutex_);
    REMUSD_TRY(failure_);
    for (size_t i = 0; i < wanted_.size(); ++i) wanted_[i] = now_[i] | before_[i];
    std::fill(stored_.begin(), stored_.end(), 0);
    std::fill(changed_.begin(), changed_.end(), true);
    turn_epoch_ = 0;
    tracks_ = true;  // what is touched from here on waits for the blocks
    point_ = {};
  }
  // The old point must not count with the new bits, nor the new one with the old.
  Status status = write_header({}, 0);
  if (status.ok()) status = store();
  if (status.ok()) status = write_header(point, 0);
  const std::lock_guard lock(mutex_);
  failure_ = status;
  if (!status.ok()) {
    std::fill(stored_.begin(), stored_.end(), 0);
    return status;
  }
  point_ = point;
  begun_ = true;
  return {};
}

Status DirtyMap::forget() {
  {
    const std::lock_guard lock(mutex_);
    std::fill(wanted_.begin(), wanted_.end(), ~uint64_t{0});
    cut_tail(first_.back(), &wanted_);
    point_ = {};
    tracks_ = begun_ = false;
    failure_ = Status();
  }
  return write_header({}, 0);
}

Status DirtyMap::leave(uint64_t look) {
  const ckpt::SessionId at = point();
  if (at == ckpt::SessionId{}) return {};
  REMUSD_TRY(store());
  return write_header(at, look);
}

bool DirtyMap::touch(size_t disk, uint64_t offset, uint64_t bytes) {
  REMUSD_ASSERT(disk < disk_bytes_.size() && bytes > 0 && offset + bytes <= disk_bytes_[disk],
                "changes lie within their disk");
  const uint64_t last = first_[disk] + (offset + bytes - 1) / region_bytes_;
  const std::lock_guard lock(mutex_);
  bool ready = true;
  for (uint64_t region = first_[disk] + offset / region_bytes_; region <= last; ++region) {
    set(region, &now_);
    if (!has(wanted_, region)) {
      set(region, &wanted_);
      mark_block(region);
    }
    ready = ready && has(stored_, region);
  }
  return ready || !tracks_;
}

Status DirtyMap::store() {
  Blocks blocks;
  Bits wanted;
  {
    const std::lock_guard lock(mutex_);
    REMUSD_TRY(failure_);
    if (!tracks_) return {};
    for (size_t number = 0; number < changed_.size(); ++number)
      if (changed_[number]) blocks.emplace_back(number, block(number));
    std::fill(changed_.begin(), changed_.end(), false);
    if (blocks.empty()) return {};
    wanted = wanted_;
  }
  Status status;
  for (const auto& [number, bytes] : blocks)
    if (status.ok()) status = file_.write((1 + number) * kBlockBytes, bytes);
  if (status.ok()) status = file_.flush();
  const std::lock_guard lock(mutex_);
  failure_ = status;
  if (!status.ok()) {
    std::fill(stored_.begin(), stored_.end(), 0);
    return status;
  }
  // What was freed meanwhile is not to be relied on.
  for (size_t i = 0; i < stored_.size(); ++i) stored_[i] = wanted[i] & wanted_[i];
  return {};
}

bool DirtyMap::turn(uint64_t open_epoch, uint64_t committed) {
  const std::lock_guard lock(mutex_);
  if (!begun_ || turn_epoch_ > committed) return false;
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const uint64_t kept = wanted_[i] & (now_[i] | before_[i]);
    if (kept != wanted_[i]) mark_block(i * 64);
    wanted_[i] = kept;
    stored_[i] &= kept;
  }
  before_.swap(now_);
  std::fill(now_.begin(), now_.end(), 0);
  turn_epoch_ = open_epoch;
  return true;
}

uint64_t DirtyMap::stored_regions() const {
  const std::lock_guard lock(mutex_);
  uint64_t count = 0;
  for (const uint64_t word : wanted_) count += static_cast<uint64_t>(std::popcount(word));
  return count;
}

Bytes DirtyMap::bits() const {
  Bytes out;
  {
    const std::lock_guard lock(mutex_);
    ckpt::put_bytes(std::as_bytes(std::span(wanted_)), &out);
  }
  out.resize((first_.back() + 7) / 8);
  return out;
}

void DirtyMap::for_each(ckpt::View other,
                        const std::function<void(size_t disk, uint64_t offset, uint64_t bytes)>& run) const {
  Bytes both = bits();
  for (size_t i = 0; i < std::min(both.size(), other.size()); ++i) both[i] |= other[i];
  const auto differs = [&](uint64_t region) {
    return (std::to_integer<unsigned>(both[region / 8]) >> (region % 8) & 1) != 0;
  };
  for (size_t disk = 0; disk < disk_bytes_.size(); ++disk) {
    for (uint64_t region = first_[disk]; region < first_[disk + 1]; ++region) {
      if (!differs(region)) continue;
      const uint64_t begin = region;
      while (region + 1 < first_[disk + 1] && differs(region + 1)) ++region;
      const uint64_t offset = (begin - first_[disk]) * region_bytes_;
      const uint64_t end = std::min(disk_bytes_[disk], (region + 1 - first_[disk]) * region_bytes_);
      run(disk, offset, end - offset);
    }
  }
}

}  // namespace remusd::disk
