// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
#include "primary/staging.h"

namespace remusd::primary {
namespace {

constexpr size_t kChunkBytes = kChunkDataBytes + kChunkPages * sizeof(uint64_t);
constexpr size_t kDeviceReserveBytes = 256u << 10;  // QEMU's device state is some 60 KB
constexpr size_t kMarks = 4;                        // holding, stopped, and room to spare

}  // namespace

Result<std::unique_ptr<Staging>> Staging::make(size_t bytes, std::function<void()> wake) {
  const size_t chunks = bytes / kChunkDataBytes;
  if (chunks < kMinChunks) {
    return Status(Code::invalid, "staging of " + std::to_string(bytes) + " bytes is too small: at least " +
                                     std::to_string(kMinChunks * kChunkDataBytes) + " are needed");
  }
  auto memory = Mapping::anonymous(chunks * kChunkBytes, true);
  if (!memory.ok()) return memory.status().with_context("staging memory");
  return std::unique_ptr<Staging>(new Staging(*std::move(memory), chunks, std::move(wake)));
}

Staging::Staging(Mapping memory, size_t chunks, std::function<void()> wake)
    : memory_(std::move(memory)),
      wake_(std::move(wake)),
      chunks_(chunks),
      queue_(chunks + kMaxInFlight + kMarks) {
  std::byte* data = memory_.data();
  auto* numbers = reinterpret_cast<uint64_t*>(data + chunks * kChunkDataBytes);
  free_chunks_.reserve(chunks);
  free_slots_.reserve(slots_.size());
  for (size_t i = 0; i < chunks; ++i) {
    chunks_[i].data = {data + i * kChunkDataBytes, kChunkDataBytes};
    chunks_[i].numbers = {numbers + i * kChunkPages, kChunkPages};
    free_chunks_.push_back(&chunks_[i]);
  }
  for (EpochSlot& slot : slots_) {
    slot.device.reserve(kDeviceReserveBytes);
    free_slots_.push_back(&slot);
  }
}

Chunk* Staging::acquire_chunk(bool* waited) {
  std::unique_lock lock(mutex_);
  if (free_chunks_.empty() && !stopped_) *waited = true;
  freed_.wait(lock, [this] { return stopped_ || !free_chunks_.empty(); });
  if (stopped_) return nullptr;
  Chunk* chunk = free_chunks_.back();
  free_chunks_.pop_back();
  chunk->pages = chunk->runs = 0;
  return chunk;
}

EpochSlot* Staging::acquire_slot(bool* waited) {
  std::unique_lock lock(mutex_);
  if (free_slots_.empty() && !stopped_) *waited = true;
  freed_.wait(lock, [this] { return stopped_ || !free_slots_.empty(); });
  if (stopped_) return nullptr;
  EpochSlot* slot = free_slots_.back();
  free_slots_.pop_back();
  slot->base.clear();
  slot->sample = {};
  slot->wired = false;
  return slot;
}

void Staging::put(const Item& item, bool wake) {
  {
    const std::lock_guard lock(mutex_);
    REMUSD_ASSERT(queued_ < queue_.size(), "the queue has room for everything that exists");
    queue_[(head_ + queued_++) % queue_.size()] = item;
  }
  if (wake) wake_();
}

bool Staging::wait_drained(size_t chunks) {
  std::unique_lock lock(mutex_);
  freed_.wait(lock, [&] { return stopped_ || chunks_.size() - free_chunks_.size() <= chunks; });
  return !stopped_;
}

std::optional<Item> Staging::take() {
  const std::lock_guard lock(mutex_);
  if (queued_ == 0) return std::nullopt;
  const Item item = queue_[head_];
  head_ = (head_ + 1) % queue_.size();
  --queued_;
  return item;
}

void Staging::recycle(Chunk* chunk) {
  {
    const std::lock_guard lock(mutex_);
    REMUSD_ASSERT(free_chunks_.size() < chunks_.size(), "a chunk is given back once");
    free_chunks_.push_back(chunk);
  }
  freed_.notify_one();
}

void Staging::recycle(EpochSlot* slot) {
  {
    const std::lock_guard lock(mutex_);
    REMUSD_ASSERT(free_slots_.size() < slots_.size(), "a slot is given back once");
    free_slots_.push_back(slot);
  }
  freed_.notify_one();
}

void Staging::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  freed_.notify_all();
}

size_t Staging::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return (chunks_.size() - free_chunks_.size()) * kChunkDataBytes;
}

}  // namespace remusd::primary
