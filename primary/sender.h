// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Turns what staging holds into frames on the link, one frame per step(), never blocking: when the link has
// no room the frame is kept and tried again. Also heartbeats, the samples of epochs in flight, and the
// recording of what was sent. Owned by the ship thread.
#pragma once

#include <array>
#include <fstream>
#include <functional>
#include <optional>
#include <string>

#include "ckpt/blob_delta.h"
#include "ckpt/link.h"
#include "ckpt/page_codec.h"
#include "ckpt/records.h"
#include "ckpt/seed.h"
#include "disk/copier.h"
#include "primary/staging.h"

namespace remusd::primary {

class Sender {
 public:
  Sender(ckpt::Link& link, Staging& staging, uint64_t generation, Duration heartbeat_interval,
         std::function<void(const EpochSample&)> on_epoch);

  /// Everything that is sent from now on is also written to `path`, as the peer sees it.
  Status record_to(const std::string& path);

  /// Deltas were agreed on: from now on pages go as what changed against `shadow`, which must outlive the
  /// Sender. Before the first epoch.
  void use_deltas(ckpt::Shadow* shadow) { shadow_pages_ = shadow; }

  /// The guest has disks: what epochs change on them goes with the epochs, and the first one with what
  /// `copier` copies. Both outlive the Sender. Before the first epoch.
  void use_disks(disk::Tap* tap, disk::Copier* copier) {
    tap_ = tap;
    copier_ = copier;
  }

  /// One frame outside the epochs. `exhausted`: no room now.
  Status send(ckpt::FrameType type, uint64_t epoch, ckpt::View body);

  enum class Step {
    idle,       // nothing to do
    blocked,    // the link has no room
    worked,     // a frame was queued (or, when discarding, an item dropped)
    sealed,     // epoch() begins its last frames
    committed,  // COMMIT of epoch() was queued with digest()
    holding,    // output is held from here on
    stopped,    // the epoch thread has ended
  };
  /// Advances by one frame. `discard`: drops instead of sending, for good.
  Step step(bool discard, Time now);
  uint64_t epoch() const { return epoch_; }
  uint64_t digest() const { return last_digest_; }

  /// Queues a heartbeat when one is due and there is room. Data that fills the queue is a sign of life, too.
  void heartbeat(Time now);
  void on_heartbeat(const ckpt::Heartbeat& heartbeat, Time now);
  /// `epoch` and all before it are acknowledged: their samples are told, their slots freed.
  void on_ack(uint64_t epoch, Time now);
  /// Marks epochs whose last byte the kernel took.
  void note_wire(Time now);

  Time next_heartbeat() const { return next_heartbeat_; }
  double rtt_seconds() const { return rtt_seconds_; }
  // Of the first epoch. Pages that the backup kept count as sent.
  uint64_t sync_sent_pages() const { return sync_sent_pages_; }
  uint64_t sync_sent_bytes() const { return sync_sent_bytes_; }
  uint64_t queued_bytes() const { return queued_bytes_; }

 private:
  Status append(ckpt::FrameType type, uint64_t epoch, ckpt::View body, uint64_t* checksum);
  Step discard_item();
  bool has_room() const;
  /// Sends what is in body_; false when it has to wait.
  bool queue(uint64_t epoch, Time now);
  Step send_copied(bool discard, Time now);
  Step encode(Time now);
  void encode_chunk(const Chunk& chunk);
  void encode_slot();  // its next frame; the last is COMMIT
  void finish_chunk();

  ckpt::Link& link_;
  Staging& staging_;
  std::function<void(const EpochSample&)> on_epoch_;
  Duration heartbeat_interval_;

  std::optional<Item> item_;  // being sent
  bool told_sealed_ = false, disks_done_ = false, device_done_ = false;
  bool copied_ = false;  // body_ comes from the copier
  uint64_t base_offset_ = 0, device_offset_ = 0;
  ckpt::Bytes body_;  // encoded, not yet queued when body_ready_
  bool body_ready_ = false;
  ckpt::PageCounts body_counts_;  // of a PAGES body
  ckpt::FrameType body_type_ = ckpt::FrameType::pages;
  uint64_t base_next_ = 0, device_next_ = 0;

  // Of the epoch that is being sent.
  uint64_t epoch_ = 0;
  ckpt::EpochDigest digest_;
  uint64_t last_digest_ = 0;
  uint64_t pages_ = 0, sent_bytes_ = 0;
  uint64_t captured_pages_ = 0, same_pages_ = 0, delta_pages_ = 0;
  uint64_t disk_bytes_ = 0, body_disk_bytes_ = 0;
  Duration encode_time_{};
  Time first_queued_{};

  ckpt::Shadow* shadow_pages_ = nullptr;  // null: no deltas
  disk::Tap* tap_ = nullptr;              // null: no disks
  disk::Copier* copier_ = nullptr;
  ckpt::BlobHistory device_history_;

  std::array<EpochSlot*, kMaxInFlight> in_flight_{};  // oldest first
  size_t in_flight_count_ = 0;

  Time next_heartbeat_{};
  uint64_t peer_sent_ns_ = 0;
  Time peer_heard_{};
  double rtt_seconds_ = 0;
  uint64_t sync_sent_pages_ = 0, sync_sent_bytes_ = 0;
  uint64_t queued_bytes_ = 0;

  ckpt::FrameWriter shadow_;  // numbers the recorded frames as the link's writer does
  ckpt::Bytes shadow_bytes_;
  std::ofstream record_;
};

}  // namespace remusd::primary
