// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/sender.h"

#include "ckpt/fail_point.h"

namespace remusd::primary {
namespace {

using ckpt::FrameType;

// Room that data leaves for heartbeats, ORDER and GOODBYE.
constexpr size_t kControlReserve = 64u << 10;

uint64_t to_ns(Time time) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count());
}

void before_queueing(FrameType type) {
  if (type == FrameType::pages) fail_point("primary.before_pages");
  if (type == FrameType::base) fail_point("primary.before_base");
  if (type == FrameType::device) fail_point("primary.before_device");
  if (type == FrameType::commit) fail_point("primary.before_commit");
}

void after_queueing(FrameType type) {
  if (type == FrameType::pages) fail_point("primary.after_pages");
  if (type == FrameType::base) fail_point("primary.after_base");
  if (type == FrameType::device) fail_point("primary.after_device");
  if (type == FrameType::commit) fail_point("primary.after_commit");
}

}  // namespace

Sender::Sender(ckpt::Link& link, Staging& staging, uint64_t generation, Duration heartbeat_interval,
               std::function<void(const EpochSample&)> on_epoch)
    : link_(link),
      staging_(staging),
      on_epoch_(std::move(on_epoch)),
      heartbeat_interval_(heartbeat_interval) {
  link_.writer().set_generation(generation);
  shadow_.set_generation(generation);
  body_.reserve(ckpt::kMaxBodyBytes);
}

Status Sender::record_to(const std::string& path) {
  record_.open(path, std::ios::binary | std::ios::trunc);
  if (!record_) return Status(Code::io, "record the stream to " + path + ": cannot be written");
  return Status::ok_status();
}

Status Sender::append(FrameType type, uint64_t epoch, ckpt::View body, uint64_t* checksum) {
  uint64_t ours = 0;
  REMUSD_TRY(link_.append(type, epoch, body, &ours));
  queued_bytes_ += sizeof(ckpt::FrameHeader) + body.size();
  if (record_.is_open()) {
    shadow_bytes_.clear();
    const uint64_t theirs = shadow_.append(type, epoch, body, &shadow_bytes_);
    REMUSD_ASSERT(theirs == ours, "the recording is what the link sends");
    record_.write(reinterpret_cast<const char*>(shadow_bytes_.data()),
                  static_cast<std::streamsize>(shadow_bytes_.size()));
    if (type == FrameType::commit || type == FrameType::goodbye) record_.flush();
  }
  if (checksum != nullptr) *checksum = ours;
  return Status::ok_status();
}

Status Sender::send(FrameType type, uint64_t epoch, ckpt::View body) {
  return append(type, epoch, body, nullptr);
}

Sender::Step Sender::step(bool discard, Time now) {
  if (copied_) return send_copied(discard, now);
  if (!item_) {
    item_ = staging_.take();
    if (!item_) {
      // The first sync of disks: what is copied goes before the first epoch is sealed.
      body_.clear();
      copied_ = copier_ != nullptr && copier_->next(&body_, &body_disk_bytes_);
      return copied_ ? send_copied(discard, now) : Step::idle;
    }
    body_ready_ = told_sealed_ = disks_done_ = device_done_ = false;
    base_offset_ = device_offset_ = 0;
  }
  if (item_->kind == Item::Kind::holding || item_->kind == Item::Kind::stopped) {
    const Item::Kind kind = item_->kind;
    item_.reset();
    return kind == Item::Kind::holding ? Step::holding : Step::stopped;
  }
  if (item_->kind == Item::Kind::sealed && !told_sealed_) {
    told_sealed_ = true;
    epoch_ = item_->slot->epoch;
    return Step::sealed;
  }
  return discard ? discard_item() : encode(now);
}

Sender::Step Sender::discard_item() {
  if (item_->chunk != nullptr) staging_.recycle(item_->chunk);
  if (item_->slot != nullptr) staging_.recycle(item_->slot);
  item_.reset();
  return Step::worked;
}

bool Sender::has_room() const {
  return link_.send_space() >= sizeof(ckpt::FrameHeader) + ckpt::kMaxBodyBytes + kControlReserve;
}

Sender::Step Sender::send_copied(bool discard, Time now) {
  if (!discard) {
    body_type_ = FrameType::disk;
    if (!has_room() || !queue(1, now)) return Step::blocked;
  }
  copied_ = false;
  return Step::worked;
}

bool Sender::queue(uint64_t epoch, Time now) {
  uint64_t checksum = 0;
  before_queueing(body_type_);
  if (!append(body_type_, epoch, body_, &checksum).ok()) return false;
  after_queueing(body_type_);
  if (digest_.frames() == 0 && sent_bytes_ == 0) first_queued_ = now;
  sent_bytes_ += sizeof(ckpt::FrameHeader) + body_.size();
  if (epoch == 1) sync_sent_bytes_ = sent_bytes_;
  if (body_type_ == FrameType::disk) disk_bytes_ += body_disk_bytes_;
  if (body_type_ != FrameType::commit) digest_.add(checksum);
  return true;
}

void Sender::encode_chunk(const Chunk& chunk) {
  if (chunk.runs > 0) {
    ckpt::Keep keep;
    keep.digest = chunk.digest;
    for (uint32_t i = 0; i < chunk.runs; ++i)
      keep.runs.push_back({chunk.numbers[2 * i], chunk.numbers[2 * i + 1]});
    ckpt::encode(keep, &body_);
    body_type_ = FrameType::keep;
    return;
  }
  // Most pages of the first sync are never written again: only those of later epochs are kept.
  body_counts_ =
      ckpt::encode_pages(chunk.numbers.first(chunk.pages), chunk.data.first(chunk.pages * kPageSize), &body_,
                         shadow_pages_, /*keep_new=*/chunk.epoch > 1);
  body_type_ = FrameType::pages;
}

void Sender::encode_slot() {
  EpochSlot& slot = *item_->slot;
  if (base_offset_ < slot.base.size()) {
    REMUSD_ASSERT(ckpt::append_blob_part(slot.base, base_offset_, &body_, &base_next_).ok(),
                  "the blob is in bounds");
    body_type_ = FrameType::base;
    return;
  }
  if (!disks_done_) {
    disks_done_ = tap_ == nullptr || !tap_->next(slot.epoch, &body_, &body_disk_bytes_);
    body_type_ = FrameType::disk;
    if (!disks_done_) return;
  }
  if (!device_done_) {  // Every epoch has one, even an empty one.
    const Status status =
        shadow_pages_ != nullptr
            ? device_history_.append_part(slot.device, device_offset_, &body_, &device_next_)
            : ckpt::append_blob_part(slot.device, device_offset_, &body_, &device_next_);
    REMUSD_ASSERT(status.ok(), "the blob is in bounds");
    body_type_ = FrameType::device;
    return;
  }
  ckpt::Commit commit;
  commit.frames = digest_.frames();
  commit.pages = pages_;
  commit.device_bytes = slot.device.size();
  commit.raw_bytes = pages_ * kPageSize + slot.device.size() + slot.base.size() + disk_bytes_;
  commit.digest = digest_.value();
  ckpt::encode(commit, &body_);
  body_type_ = FrameType::commit;
}

void Sender::finish_chunk() {
  body_ready_ = false;
  if (item_->chunk->runs == 0) {
    captured_pages_ += item_->chunk->pages;
    pages_ += body_counts_.total();
    same_pages_ += body_counts_.same;
    delta_pages_ += body_counts_.delta + body_counts_.delta_lz4;
  }
  if (item_->chunk->epoch == 1) sync_sent_pages_ += item_->chunk->pages;
  staging_.recycle(item_->chunk);
  item_.reset();
}

Sender::Step Sender::encode(Time now) {
  const uint64_t epoch = item_->chunk != nullptr ? item_->chunk->epoch : item_->slot->epoch;
  if (!body_ready_) {
    if (!has_room()) return Step::blocked;
    const Time began = Clock::now();
    body_.clear();
    base_next_ = base_offset_;
    device_next_ = device_offset_;
    if (item_->chunk != nullptr) {
      encode_chunk(*item_->chunk);
    } else {
      encode_slot();
    }
    encode_time_ += Clock::now() - began;
    body_ready_ = true;
  }
  if (body_.empty()) {  // The backup has every page of the chunk already.
    REMUSD_ASSERT(item_->chunk != nullptr && body_counts_.same == item_->chunk->pages,
                  "only pages are left out");
    finish_chunk();
    return Step::worked;
  }
  if (!queue(epoch, now)) return Step::blocked;
  body_ready_ = false;

  if (body_type_ != FrameType::commit) {
    if (item_->chunk != nullptr) {
      finish_chunk();
    } else {
      base_offset_ = base_next_;
      device_offset_ = device_next_;
      if (body_type_ == FrameType::device) device_done_ = device_offset_ == item_->slot->device.size();
    }
    return Step::worked;
  }

  EpochSlot* slot = item_->slot;
  item_.reset();
  slot->committed = Clock::now();
  slot->first_queued = first_queued_;
  slot->wire_mark = link_.sent_bytes_when_drained();
  EpochSample& sample = slot->sample;
  sample.encode = encode_time_;
  sample.raw_bytes = captured_pages_ * kPageSize + slot->device.size() + slot->base.size() + disk_bytes_;
  sample.disk_bytes = disk_bytes_;
  sample.same_pages = same_pages_;
  sample.delta_pages = delta_pages_;
  sample.sent_bytes = sent_bytes_;
  last_digest_ = digest_.value();
  digest_.reset();
  pages_ = sent_bytes_ = captured_pages_ = same_pages_ = delta_pages_ = disk_bytes_ = 0;
  encode_time_ = {};
  REMUSD_ASSERT(in_flight_count_ < in_flight_.size(), "as many epochs are in flight as there are slots");
  in_flight_[in_flight_count_++] = slot;
  return Step::committed;
}

void Sender::note_wire(Time now) {
  for (size_t i = 0; i < in_flight_count_; ++i) {
    EpochSlot& slot = *in_flight_[i];
    if (slot.wired || link_.stats().sent_bytes < slot.wire_mark) continue;
    slot.wired = true;
    slot.sample.wire = now - slot.first_queued;
  }
}

void Sender::on_ack(uint64_t epoch, Time now) {
  note_wire(now);
  if (tap_ != nullptr) tap_->acked(epoch);
  size_t done = 0;
  for (; done < in_flight_count_ && in_flight_[done]->epoch <= epoch; ++done) {
    EpochSlot* slot = in_flight_[done];
    if (!slot->wired) slot->sample.wire = now - slot->first_queued;
    slot->sample.ack = now - slot->committed;
    slot->sample.commit = now - slot->began;
    if (on_epoch_) on_epoch_(slot->sample);
    staging_.recycle(slot);
  }
  for (size_t i = done; i < in_flight_count_; ++i) in_flight_[i - done] = in_flight_[i];
  in_flight_count_ -= done;
}

void Sender::heartbeat(Time now) {
  if (now < next_heartbeat_) return;
  next_heartbeat_ = now + heartbeat_interval_;
  ckpt::Heartbeat heartbeat;
  heartbeat.sent_ns = to_ns(now);
  if (peer_sent_ns_ != 0) heartbeat.echo_ns = peer_sent_ns_ + (to_ns(now) - to_ns(peer_heard_));
  ckpt::Bytes body;
  ckpt::encode(heartbeat, &body);
  // No room means that the queue is full of data, which is a sign of life itself.
  (void)append(FrameType::heartbeat, 0, body, nullptr);
}

void Sender::on_heartbeat(const ckpt::Heartbeat& heartbeat, Time now) {
  peer_sent_ns_ = heartbeat.sent_ns;
  peer_heard_ = now;
  // The echo is our own clock plus the time it was kept there: what is missing to now was spent on the way.
  if (heartbeat.echo_ns != 0 && heartbeat.echo_ns <= to_ns(now))
    rtt_seconds_ = static_cast<double>(to_ns(now) - heartbeat.echo_ns) / 1e9;
}

}  // namespace remusd::primary
