// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A backup for tests of the primary: speaks the session over a real link, checks every epoch against its
// digest and against the simulated guest's own sum over memory, and misbehaves where a script says so.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "ckpt/link.h"
#include "ckpt/page_codec.h"
#include "ckpt/records.h"
#include "guest/sim/device.h"
#include "guest/sim/machine.h"
#include "tests/loopback.h"

namespace remusd::primary {

struct Script {
  std::string refuse_hello;  // reason; empty: take part
  std::string refuse_facts;
  std::string node = "b";
  bool die_after_ready = false;
  uint64_t die_at_commit = 0;     // closes instead of acknowledging this epoch
  uint64_t silent_at_commit = 0;  // neither acknowledges nor says anything from here on
  uint64_t lose_ack_of = 0;       // this one acknowledgement is never sent
  uint64_t twice_ack_of = 0;
  uint64_t wrong_digest_at = 0;
  bool want_files = true;
  uint64_t features = ckpt::kFeatureDelta;  // an older backup has none
  std::vector<ckpt::Bytes> seeds;           // SEED bodies that follow READY
  std::vector<ckpt::Bytes> late_seeds;      // that come with the first acknowledgement
};

class FakeBackup {
 public:
  FakeBackup(Script script, uint64_t sim_digest, uint64_t memory_bytes)
      : script_(std::move(script)), sim_digest_(sim_digest), memory_(memory_bytes) {
    thread_ = std::thread([this] { run(); });
  }
  ~FakeBackup() {
    stop_ = true;
    ::shutdown(listener_.socket.get(), SHUT_RDWR);  // Ends an accept() that waits.
    thread_.join();
  }

  const std::string& address() const { return listener_.address; }
  uint64_t committed() const { return committed_; }
  /// Acknowledgements are held back while true.
  std::atomic<bool> withhold{false};

  struct Seen {
    std::string goodbye;
    bool order = false, ended = false;
    Status problem;  // what the backup itself found wrong
    std::map<std::string, ckpt::Bytes> files;
    std::string definition, facts;
    uint64_t heartbeats = 0;
    int bases = 0;
    ckpt::Bytes base, device;
  };
  Seen seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }
  /// REQUIRES: seen().ended.
  const ckpt::Bytes& memory() const { return memory_; }

 private:
  using FrameType = ckpt::FrameType;

  void run() {
    ScopedFd socket = listener_.accept();
    if (!socket) return;
    link_ = *ckpt::Link::adopt(std::move(socket), ckpt::LinkOptions{});
    Time beat{};
    while (!stop_ && link_->open()) {
      const Time now = Clock::now();
      if (now >= beat && ready_ && !silent_) {
        beat = now + std::chrono::milliseconds(20);
        send(FrameType::heartbeat, 0, ckpt::Heartbeat{1, heard_ns_});
      }
      if (!withhold && owed_ != 0 && !silent_) ack(std::exchange(owed_, 0));
      (void)link_->wait(now + std::chrono::milliseconds(5), [this](const ckpt::FrameView& frame) {
        const Status status = on_frame(frame);
        if (!status.ok() && status.code() != Code::timed_out) {
          const std::lock_guard lock(mutex_);
          seen_.problem = status;
        }
        return status;
      });
    }
    link_->close(Status(Code::unavailable, "the test ends"));
    const std::lock_guard lock(mutex_);
    seen_.ended = true;
  }

  template <typename Record>
  void send(FrameType type, uint64_t epoch, const Record& record) {
    ckpt::Bytes body;
    ckpt::encode(record, &body);
    EXPECT_TRUE(link_->append(type, epoch, body).ok());
  }
  static Status die() { return Status(Code::timed_out, "scripted death"); }

  void ack(uint64_t epoch) {
    const uint64_t wrong = script_.wrong_digest_at == epoch ? 1 : 0;
    if (script_.lose_ack_of == epoch) return;
    if (epoch == 1) {
      for (const ckpt::Bytes& seed : script_.late_seeds)
        EXPECT_TRUE(link_->append(FrameType::seed, 0, seed).ok());
    }
    send(FrameType::ack, epoch, ckpt::Ack{digests_[epoch] + wrong, epoch});
    if (script_.twice_ack_of == epoch) send(FrameType::ack, epoch, ckpt::Ack{digests_[epoch], epoch});
  }

  Status on_frame(const ckpt::FrameView& frame) {
    const std::lock_guard lock(mutex_);
    switch (frame.type()) {
      case FrameType::hello:
        return on_hello(frame);
      case FrameType::definition:
        return on_definition(frame);
      case FrameType::file:
        return on_file(frame);
      case FrameType::facts:
        return on_facts(frame);
      case FrameType::pages:
      case FrameType::base:
      case FrameType::device:
        return on_data(frame);
      case FrameType::commit:
        return on_commit(frame);
      case FrameType::heartbeat: {
        ckpt::Heartbeat heartbeat;
        REMUSD_TRY(ckpt::decode(frame.body, &heartbeat));
        heard_ns_ = heartbeat.sent_ns;
        ++seen_.heartbeats;
        return {};
      }
      case FrameType::goodbye: {
        ckpt::Refuse goodbye;
        REMUSD_TRY(ckpt::decode(frame.body, &goodbye));
        seen_.goodbye = goodbye.reason;
        return die();
      }
      case FrameType::order:
        seen_.order = true;
        return die();
      default:
        return Status(Code::corrupt, "unexpected frame");
    }
  }

  Status on_hello(const ckpt::FrameView& frame) {
    ckpt::Hello hello;
    REMUSD_TRY(ckpt::decode(frame.body, &hello));
    if (!script_.refuse_hello.empty()) {
      send(FrameType::refuse, 0, ckpt::Refuse{Code::exists, script_.refuse_hello});
      return {};
    }
    generation_ = hello.generation;
    link_->writer().set_generation(generation_);
    hello.node = script_.node;
    deltas_ = (hello.features & script_.features & ckpt::kFeatureDelta) != 0;
    hello.features = script_.features;
    send(FrameType::hello, 0, hello);
    return {};
  }

  Status on_definition(const ckpt::FrameView& frame) {
    seen_.definition.assign(reinterpret_cast<const char*>(frame.body.data()), frame.body.size());
    ckpt::NeedFiles need;
    if (const size_t at = seen_.definition.find("\"digest\":\"");
        at != std::string::npos && script_.want_files)
      need.files.push_back({"kernel", seen_.definition.substr(at + 10, 32), 0});
    send(FrameType::need_files, 0, need);
    return {};
  }

  Status on_file(const ckpt::FrameView& frame) {
    ckpt::FilePart part;
    REMUSD_TRY(ckpt::decode(frame.body, &part));
    ckpt::Bytes& file = seen_.files[part.digest];
    if (part.offset != file.size()) return Status(Code::corrupt, "a gap in a file");
    file.insert(file.end(), part.data.begin(), part.data.end());
    return {};
  }

  Status on_facts(const ckpt::FrameView& frame) {
    seen_.facts.assign(reinterpret_cast<const char*>(frame.body.data()), frame.body.size());
    if (!script_.refuse_facts.empty()) {
      send(FrameType::refuse, 0, ckpt::Refuse{Code::unsafe, script_.refuse_facts});
      return {};
    }
    send(FrameType::ready, 0, ckpt::Ready{memory_.size() * 2, memory_.size()});
    ready_ = true;
    for (const ckpt::Bytes& seed : script_.seeds) EXPECT_TRUE(link_->append(FrameType::seed, 0, seed).ok());
    return script_.die_after_ready ? die() : Status();
  }

  Status on_data(const ckpt::FrameView& frame) {
    if (frame.header.epoch != committed_ + 1) return Status(Code::corrupt, "an epoch out of its turn");
    digest_.add(frame.header.checksum);
    if (frame.type() == FrameType::pages) {
      uint32_t count = 0;
      REMUSD_TRY(ckpt::check_pages(frame.body, memory_.size() / kPageSize, &count, deltas_));
      REMUSD_TRY(ckpt::verify_pages(frame.body));
      pages_ += count;
      // Into the image only once the epoch is whole.
      staged_.emplace_back(frame.body.begin(), frame.body.end());
      return {};
    }
    ckpt::BlobPart part;
    REMUSD_TRY(ckpt::decode(frame.body, &part));
    if (frame.type() == FrameType::base) return base_.add(part);
    return device_.add(part, deltas_ ? ckpt::View(seen_.device) : ckpt::View());
  }

  Status on_commit(const ckpt::FrameView& frame) {
    ckpt::Commit commit;
    REMUSD_TRY(ckpt::decode(frame.body, &commit));
    const uint64_t epoch = frame.header.epoch;
    if (epoch != committed_ + 1) return Status(Code::corrupt, "a commit out of its turn");
    if (commit.digest != digest_.value() || commit.frames != digest_.frames() || commit.pages != pages_ ||
        !device_.complete() || commit.device_bytes != device_.blob().size()) {
      return Status(Code::corrupt, "a commit that does not fit its epoch");
    }
    for (const ckpt::Bytes& pages : staged_) REMUSD_TRY(ckpt::apply_pages(pages, memory_));
    staged_.clear();
    if (base_.complete()) {
      seen_.base = base_.take();
      ++seen_.bases;
    }
    base_.reset();
    seen_.device = device_.take();
    device_.reset();
    const auto device = guest::sim::load_device(seen_.device, sim_digest_, 1);
    if (!device.ok()) return device.status();
    if (device->memory_sum != guest::sim::memory_digest(memory_))
      return Status(Code::corrupt,
                    "the image of epoch " + std::to_string(epoch) + " is not the guest's memory");
    digests_[epoch] = commit.digest;
    digest_.reset();
    pages_ = 0;
    committed_ = epoch;
    if (script_.die_at_commit == epoch) return die();
    if (script_.silent_at_commit == epoch) silent_ = true;
    if (silent_) return {};
    if (withhold) {
      owed_ = epoch;
    } else {
      ack(epoch);
    }
    return {};
  }

  const Script script_;
  const uint64_t sim_digest_;
  const Listener listener_;
  std::unique_ptr<ckpt::Link> link_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> committed_{0};
  uint64_t generation_ = 0, heard_ns_ = 0, owed_ = 0, pages_ = 0;
  bool ready_ = false, silent_ = false, deltas_ = false;
  ckpt::EpochDigest digest_;
  std::vector<ckpt::Bytes> staged_;
  ckpt::BlobAssembler base_, device_;
  std::map<uint64_t, uint64_t> digests_;
  ckpt::Bytes memory_;
  mutable std::mutex mutex_;
  Seen seen_;
  std::thread thread_;
};

}  // namespace remusd::primary
