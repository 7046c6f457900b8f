// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/copier.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "ckpt/thread.h"

namespace remusd::disk {
namespace {

constexpr uint64_t kRegionBytes = 64u << 10;
constexpr uint64_t kMaxRegions = uint64_t{1} << 20;
constexpr uint64_t kWordRegions = 64;
constexpr uint64_t kChunkBytes = ckpt::kMaxDiskRunBytes;
// So much may be left for the last pass, which the guest's next pause waits for.
constexpr uint64_t kLittleBytes = 4u << 20;
constexpr int kMaxPasses = 8;
// What began before the tap logged is done in a moment; nobody tells when.
constexpr Duration kUnderWayLook = std::chrono::microseconds(500);

}  // namespace

Copier::Copier(std::span<const LocalFile> files, Tap& tap, uint64_t bytes_per_second,
               std::function<void()> wake)
    : files_(files), tap_(tap), bytes_per_second_(bytes_per_second), wake_(std::move(wake)) {
  for (const LocalFile& file : files_) {
    Marks marks;
    marks.region_bytes = std::max(kRegionBytes, std::bit_ceil(file.bytes() / kMaxRegions));
    marks.regions = (file.bytes() + marks.region_bytes - 1) / marks.region_bytes;
    marks.words = std::vector<std::atomic<uint64_t>>((marks.regions + kWordRegions - 1) / kWordRegions);
    marks_.push_back(std::move(marks));
    progress_.total_bytes += file.bytes();
  }
  tap_.mark([this](const Change& change) { mark(change); });
  thread_ = std::thread([this] {
    begin_thread("disksync");
    run();
  });
}

Copier::~Copier() {
  stop();
  thread_.join();
}

void Copier::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
}

/// The server's thread.
void Copier::mark(const Change& change) {
  Marks& marks = marks_[change.disk];
  const uint64_t last = (change.offset + change.bytes - 1) / marks.region_bytes;
  for (uint64_t region = change.offset / marks.region_bytes; region <= last; ++region)
    marks.words[region / kWordRegions].fetch_or(uint64_t{1} << region % kWordRegions);
}

uint64_t Copier::marked_bytes() const {
  uint64_t all = 0;
  for (const Marks& marks : marks_)
    for (const auto& word : marks.words)
      all += static_cast<uint64_t>(std::popcount(word.load())) * marks.region_bytes;
  return all;
}

void Copier::run() {
  const Status status = copy();
  {
    const std::lock_guard lock(mutex_);
    failure_ = status;
    stage_ = Stage::finished;
  }
  changed_.notify_all();
}

Status Copier::copy() {
  REMUSD_TRY(pass(true));
  for (int passes = 1; passes < kMaxPasses && marked_bytes() > kLittleBytes; ++passes)
    REMUSD_TRY(pass(false));
  {
    std::unique_lock lock(mutex_);
    stage_ = Stage::settled;
    changed_.notify_all();
    changed_.wait(lock, [this] { return finish_asked_ || stop_; });
  }
  // Again before the log begins: it has been some time.
  REMUSD_TRY(pass(false));
  tap_.log();
  for (;;) {
    // In this order: what is done marks before it stops being under way.
    const bool under_way = tap_.unlogged() > 0;
    REMUSD_TRY(pass(false));
    if (!under_way && marked_bytes() == 0) break;
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kUnderWayLook, [this] { return stop_; });
  }
  if (!body_.empty()) REMUSD_TRY(hand_over());
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_.empty() || stop_; });
  return stop_ ? Status(Code::unavailable, "the first sync was stopped") : Status();
}

/// The first reads everything, the others what is marked.
Status Copier::pass(bool first) {
  for (size_t disk = 0; disk < files_.size(); ++disk) {
    Marks& marks = marks_[disk];
    for (uint64_t region = 0; region < marks.regions;) {
      std::atomic<uint64_t>& word = marks.words[region / kWordRegions];
      const uint64_t bit = uint64_t{1} << region % kWordRegions;
      if (!first && word.load() == 0) {
        region = (region / kWordRegions + 1) * kWordRegions;
        continue;
      }
      // Cleared before it is read: what is written from here on is marked anew.
      const bool marked = (word.fetch_and(~bit) & bit) != 0;
      if (first || marked) {
        const uint64_t offset = region * marks.region_bytes;
        const uint64_t bytes = std::min(marks.region_bytes, files_[disk].bytes() - offset);
        REMUSD_TRY(copy_region(disk, offset, bytes));
        const std::lock_guard lock(mutex_);
        (first ? progress_.copied_bytes : progress_.again_bytes) += bytes;
      }
      ++region;
    }
  }
  return {};
}

Status Copier::copy_region(size_t disk, uint64_t offset, uint64_t bytes) {
  const LocalFile& file = files_[disk];
  const uint64_t end = offset + bytes;
  while (offset < end) {
    REMUSD_ASSIGN(const LocalFile::Run data, file.next_data(offset));
    ckpt::DiskRun run;
    run.disk = static_cast<uint16_t>(disk);
    run.offset = offset;
    if (data.begin > offset) {
      run.bytes = static_cast<uint32_t>(std::min(std::min(data.begin, end) - offset, kChunkBytes));
      run.encoding = ckpt::DiskEncoding::hole;
    } else {
      run.bytes = static_cast<uint32_t>(std::min(std::min(data.end, end) - offset, kChunkBytes));
      buffer_.resize(run.bytes);
      REMUSD_TRY(file.read(offset, buffer_));
      run.data = buffer_;
    }
    REMUSD_TRY(add(run));
    offset += run.bytes;
  }
  return {};
}

Status Copier::add(const ckpt::DiskRun& run) {
  if (body_.add(run)) return {};
  REMUSD_TRY(hand_over());
  REMUSD_ASSERT(body_.add(run), "an empty body has room for a run");
  return {};
}

/// Waits until the ship thread has room, and at the rate that is allowed.
Status Copier::hand_over() {
  Body body;
  body.raw_bytes = body_.raw_bytes();
  body_.take(&body.bytes);
  const Time now = Clock::now();
  std::unique_lock lock(mutex_);
  if (bytes_per_second_ > 0) {
    changed_.wait_until(lock, paced_until_, [this] { return stop_; });
    const auto takes = std::chrono::nanoseconds(body.bytes.size() * 1'000'000'000 / bytes_per_second_);
    paced_until_ = std::max(paced_until_, now) + takes;
  }
  changed_.wait(lock, [this] { return ready_.size() < kMaxReady || stop_; });
  if (stop_) return {Code::unavailable, "the first sync was stopped"};
  ready_.push_back(std::move(body));
  lock.unlock();
  wake_();
  return {};
}

bool Copier::next(ckpt::Bytes* out, uint64_t* raw_bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (ready_.empty()) return false;
    const Body& body = ready_.front();
    out->insert(out->end(), body.bytes.begin(), body.bytes.end());
    *raw_bytes = body.raw_bytes;
    progress_.sent_bytes += body.bytes.size();
    ready_.pop_front();
  }
  changed_.notify_all();
  return true;
}

Status Copier::await(Stage stage) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stage_ >= stage || stop_; });
  if (!failure_.ok()) return failure_;
  return stop_ ? Status(Code::unavailable, "the first sync was stopped") : Status();
}

Status Copier::settle() {
  return await(Stage::settled);
}

Status Copier::finish() {
  {
    const std::lock_guard lock(mutex_);
    finish_asked_ = true;
  }
  changed_.notify_all();
  return await(Stage::finished);
}

CopyProgress Copier::progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

}  // namespace remusd::disk
