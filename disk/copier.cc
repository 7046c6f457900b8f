// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "disk/copier.h"

#include <algorithm>
#include <utility>

#include "ckpt/thread.h"
#include "ckpt/wire.h"
#include "disk/digests.h"

namespace remusd::disk {
namespace {

constexpr uint64_t kChunkBytes = ckpt::kMaxDiskRunBytes;
// So much may be left for the last pass, which the guest's next pause waits for.
constexpr uint64_t kLittleBytes = 4u << 20;
constexpr int kMaxPasses = 8;
// What began before the tap logged is done in a moment; nobody tells when.
constexpr Duration kUnderWayLook = std::chrono::microseconds(500);

}  // namespace

Copier::Copier(std::span<const LocalFile> files, Tap& tap, uint64_t bytes_per_second,
               std::function<void()> wake, const Counterpart& counterpart)
    : files_(files),
      tap_(tap),
      bytes_per_second_(bytes_per_second),
      wake_(std::move(wake)),
      counterpart_(counterpart),
      key_(ckpt::make_digest_key()) {
  for (const LocalFile& file : files_) marks_.emplace_back(file.bytes());
  tap_.mark([this](const Change& change) {
    if (!tap_.holds(change.disk)) marks_[change.disk].mark(change.offset, change.bytes);
  });
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
  if (counterpart_.inquiry != nullptr) counterpart_.inquiry->stop();
  changed_.notify_all();
}

uint64_t Copier::marked_bytes() const {
  uint64_t all = 0;
  for (const BlockMarks& marks : marks_) all += marks.marked_bytes();
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
  REMUSD_TRY(first_pass());
  for (int passes = 1; passes < kMaxPasses && marked_bytes() > kLittleBytes; ++passes)
    REMUSD_TRY(copy_marked());
  {
    std::unique_lock lock(mutex_);
    stage_ = Stage::settled;
    changed_.notify_all();
    changed_.wait(lock, [this] { return finish_asked_ || stop_; });
  }
  // Again before the log begins: it has been some time.
  REMUSD_TRY(copy_marked());
  REMUSD_TRY(begin_log());
  for (;;) {
    // In this order: what is done marks before it stops being under way.
    const bool under_way = tap_.unlogged() > 0;
    REMUSD_TRY(copy_marked());
    if (!under_way && marked_bytes() == 0) break;
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kUnderWayLook, [this] { return stop_; });
  }
  REMUSD_TRY(flush_held());
  if (!body_.empty()) REMUSD_TRY(hand_over());
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ready_.empty() || stop_; });
  return stop_ ? Status(Code::unavailable, "the first sync was stopped") : Status();
}

/// Waits until all that an earlier session kept of held disks is on them.
Status Copier::begin_log() {
  for (;;) {
    REMUSD_ASSIGN(const bool may, tap_.may_log());
    if (may) break;
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kUnderWayLook, [this] { return stop_; }))
      return {Code::unavailable, "the first sync was stopped"};
  }
  tap_.log();
  return {};
}

/// What was written before the tap kept it is on the medium when the first epoch is committed.
Status Copier::flush_held() {
  for (size_t disk = 0; disk < files_.size(); ++disk)
    if (tap_.holds(disk) && !files_[disk].read_only()) REMUSD_TRY(files_[disk].flush());
  return {};
}

Status Copier::first_pass() {
  std::vector<Span> spans;
  REMUSD_TRY(find_spans(&spans));
  {
    const std::lock_guard lock(mutex_);
    for (const Span& span : spans) progress_.total_bytes += span.bytes;
  }
  for (const Span& span : spans) {
    if (counterpart_.inquiry != nullptr) {
      REMUSD_TRY(compare(span));
      continue;
    }
    const uint64_t end = span.offset + span.bytes;
    for (uint64_t at = span.offset; at < end; at += kChunkBytes) {
      const uint64_t bytes = std::min(kChunkBytes, end - at);
      looked_at(span.disk, at, bytes);
      REMUSD_TRY(copy_region(span.disk, at, bytes));
    }
  }
  return {};
}

/// Where to look: everywhere, or where one of two maps of the same sync point says so.
Status Copier::find_spans(std::vector<Span>* spans) {
  if (counterpart_.inquiry != nullptr && counterpart_.map != nullptr) {
    ckpt::SessionId theirs{};
    ckpt::Bytes bits;
    REMUSD_TRY(ask_map(&theirs, &bits));
    // The tap has marked changes for a while: what this map does not have yet will be marked.
    const ckpt::SessionId ours = counterpart_.map->point();
    if (ours != ckpt::SessionId{} && ours == theirs) {
      counterpart_.map->for_each(bits, [&](size_t disk, uint64_t offset, uint64_t bytes) {
        if (!tap_.holds(disk)) spans->push_back({disk, offset, bytes});
      });
      const std::lock_guard lock(mutex_);
      progress_.by_map = true;
      return {};
    }
  }
  for (size_t disk = 0; disk < files_.size(); ++disk)
    if (!tap_.holds(disk)) spans->push_back({disk, 0, files_[disk].bytes()});
  return {};
}

Status Copier::ask_map(ckpt::SessionId* point, ckpt::Bytes* bits) {
  const size_t whole = counterpart_.map->bits().size();
  do {
    ckpt::DiskAsk ask;
    ask.offset = bits->size();
    ask.key = key_;
    counterpart_.inquiry->ask(ask);
    ckpt::DiskTell tell;
    REMUSD_TRY(counterpart_.inquiry->answer(&answer_, &tell));
    const bool follows = tell.kind == ask.kind && tell.offset == ask.offset &&
                         tell.region_bytes == counterpart_.map->region_bytes() &&
                         (bits->empty() || tell.point == *point);
    // It has no map of such disks, or its point has changed: then everything may differ.
    if (!follows || tell.point == ckpt::SessionId{} || tell.data.empty()) {
      *point = {};
      return {};
    }
    *point = tell.point;
    ckpt::put_bytes(tell.data, bits);
  } while (bits->size() < whole);
  return {};
}

void Copier::ask(const Span& span, uint64_t offset) {
  ckpt::DiskAsk ask;
  ask.kind = ckpt::DiskAskKind::blocks;
  ask.disk = static_cast<uint16_t>(span.disk);
  ask.offset = offset;
  ask.bytes = span.offset + span.bytes - offset;
  ask.key = key_;
  counterpart_.inquiry->ask(ask);
}

/// The backup reads what comes next while this side compares.
Status Copier::compare(const Span& span) {
  const uint64_t end = span.offset + span.bytes;
  const LocalFile& file = files_[span.disk];
  LocalMedium disk(&file);
  ask(span, span.offset);
  for (uint64_t offset = span.offset; offset < end;) {
    ckpt::DiskTell tell;
    REMUSD_TRY(counterpart_.inquiry->answer(&answer_, &tell));
    const bool right = tell.kind == ckpt::DiskAskKind::blocks && tell.disk == span.disk &&
                       tell.offset == offset && tell.bytes <= end - offset &&
                       (tell.bytes == end - offset || tell.bytes % ckpt::kDiskBlockBytes == 0);
    if (!right) return {Code::corrupt, "the backup tells of another part of its disks than it was asked for"};
    if (offset + tell.bytes < end) ask(span, offset + tell.bytes);
    // Unmarked before it is read: what is written from here on is marked anew.
    looked_at(span.disk, offset, tell.bytes);
    REMUSD_TRY(
        compare_blocks(disk, tell, key_, &buffer_, [this](const ckpt::DiskRun& run) { return add(run); }));
    offset += tell.bytes;
  }
  return {};
}

void Copier::looked_at(size_t disk, uint64_t offset, uint64_t bytes) {
  marks_[disk].unmark(offset, bytes);
  const std::lock_guard lock(mutex_);
  progress_.copied_bytes += bytes;
}

Status Copier::copy_marked() {
  for (size_t disk = 0; disk < files_.size(); ++disk) {
    uint64_t at = 0, offset = 0, bytes = 0;
    // Cleared before it is read: what is written from here on is marked anew.
    while (marks_[disk].take(&at, &offset, &bytes)) {
      REMUSD_TRY(copy_region(disk, offset, bytes));
      const std::lock_guard lock(mutex_);
      progress_.again_bytes += bytes;
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
  {
    const std::lock_guard lock(mutex_);
    progress_.changed_bytes += run.bytes;
  }
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
