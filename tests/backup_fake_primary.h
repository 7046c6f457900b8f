// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A primary for the tests of backup::Session: scripted step by step over real TCP, with a simulated machine
// that moves only when it is told to, so that what the backup must hold after each epoch is known exactly.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "backup/session.h"
#include "ckpt/link.h"
#include "ckpt/page_codec.h"
#include "guest/sim/machine.h"
#include "tests/loopback.h"

namespace remusd::backup {

constexpr uint64_t kTestGeneration = 3;

/// Answers as scripted; when the script is at its end it is a true compare-and-swap.
class FakeArbiter : public arbiter::Arbiter {
 public:
  FakeArbiter() {
    record_.generation = kTestGeneration;
    record_.owner = "a";
  }

  void script(std::initializer_list<arbiter::Verdict> verdicts) {
    const std::lock_guard lock(mutex_);
    script_.assign(verdicts);
  }
  void stay_unknown(bool unknown) {
    const std::lock_guard lock(mutex_);
    unknown_ = unknown;
  }
  int asked() const {
    const std::lock_guard lock(mutex_);
    return asked_;
  }
  arbiter::Record record() const {
    const std::lock_guard lock(mutex_);
    return record_;
  }
  void set_record(arbiter::Record record) {
    const std::lock_guard lock(mutex_);
    record_ = std::move(record);
  }

  Result<std::optional<arbiter::Record>> read(const std::string&, Time) override {
    return std::optional(record());
  }
  arbiter::Answer compare_and_swap(const std::string&, uint64_t expected, const arbiter::Record& desired,
                                   Time) override {
    const std::lock_guard lock(mutex_);
    ++asked_;
    if (unknown_) return {arbiter::Verdict::unknown, std::nullopt, Status(Code::timed_out, "scripted")};
    if (!script_.empty()) {
      const arbiter::Verdict verdict = script_.front();
      script_.pop_front();
      if (verdict == arbiter::Verdict::unknown) return {verdict, std::nullopt, Status(Code::io, "scripted")};
      if (verdict == arbiter::Verdict::lost)
        record_ = {.generation = expected + 1,
                   .owner = "a",
                   .boot_id = "",
                   .epoch = 0,
                   .nonce = "theirs",
                   .peer = ""};
    }
    if (record_.generation != expected) return {arbiter::Verdict::lost, record_, {}};
    record_ = desired;
    return {arbiter::Verdict::won, record_, {}};
  }
  std::string describe() const override { return "fake"; }

 private:
  mutable std::mutex mutex_;
  std::deque<arbiter::Verdict> script_;
  bool unknown_ = false;
  int asked_ = 0;
  arbiter::Record record_;
};

class FakePrimary {
 public:
  explicit FakePrimary(ScopedFd socket, const guest::Definition& definition,
                       std::unique_ptr<ckpt::TlsSession> tls = nullptr)
      : definition_(definition), machine_(*guest::sim::SimMachine::boot(guest::sim::config_of(definition))) {
    auto link = ckpt::Link::adopt(std::move(socket), {}, std::move(tls));
    EXPECT_TRUE(link.ok());
    link_ = *std::move(link);
    link_->writer().set_generation(kTestGeneration);
  }

  /// Sends heartbeats and keeps what arrives until `done`, the link closes, or five seconds have passed.
  bool pump(const std::function<bool()>& done) {
    const Time deadline = Clock::now() + std::chrono::seconds(5);
    while (!done() && link_->open() && Clock::now() < deadline) {
      if (heartbeats) send(ckpt::FrameType::heartbeat, ckpt::Heartbeat{1, 0});
      (void)link_->wait(Clock::now() + std::chrono::milliseconds(10), [this](const ckpt::FrameView& frame) {
        ++received[frame.type()];
        if (frame.type() == ckpt::FrameType::refuse || frame.type() == ckpt::FrameType::goodbye) {
          (void)ckpt::decode(frame.body, &refuse);
        }
        if (frame.type() == ckpt::FrameType::need_files) (void)ckpt::decode(frame.body, &needs);
        if (frame.type() == ckpt::FrameType::ack) acked = frame.header.epoch;
        if (frame.type() == ckpt::FrameType::heartbeat) (void)ckpt::decode(frame.body, &heartbeat);
        return Status();
      });
    }
    return done();
  }
  bool expect(ckpt::FrameType type) {
    return pump([&] { return received[type] > 0; });
  }
  bool flush() {
    // With a heartbeat before each wait there might always be one under way.
    const bool before = std::exchange(heartbeats, false);
    const bool drained = pump([&] { return link_->drained(); });
    heartbeats = before;
    return drained;
  }
  bool expect_closed() {
    pump([] { return false; });
    return !link_->open();
  }

  template <typename Record>
  void send(ckpt::FrameType type, const Record& record, uint64_t of_epoch = 0) {
    ckpt::Bytes body;
    ckpt::encode(record, &body);
    (void)link_->append(type, of_epoch, body);
  }
  void send_text(ckpt::FrameType type, const std::string& text) {
    (void)link_->append(type, 0, std::as_bytes(std::span(text)));
  }
  ckpt::Hello hello() const {
    ckpt::Hello hello;
    hello.session = {1, 2, 3};
    hello.generation = kTestGeneration;
    hello.node = "a";
    hello.vm = definition_.name;
    return hello;
  }
  void send_definition(const std::string& files = "[]") {
    send_text(ckpt::FrameType::definition,
              R"({"definition":)" + guest::to_json(definition_) + R"(,"files":)" + files + "}");
  }
  /// HELLO to READY, without boot files.
  bool shake_hands(const std::string& facts) {
    send(ckpt::FrameType::hello, hello());
    if (!expect(ckpt::FrameType::hello)) return false;
    send_definition();
    if (!expect(ckpt::FrameType::need_files)) return false;
    send_text(ckpt::FrameType::facts, facts);
    return expect(ckpt::FrameType::ready);
  }

  /// Lets the machine run and sends what changed as the next epoch, its COMMIT apart.
  void send_epoch_data() {
    ++epoch;
    if (epoch == 1) machine_.mark_populated_dirty();
    machine_.step(5);
    digest_.reset();
    commit_ = {};
    PageSet dirty;
    machine_.collect_dirty(&dirty);
    std::vector<uint64_t> pages;
    for (const PageRange& range : dirty) {
      for (uint64_t page = range.first; page < range.first + range.count; ++page) pages.push_back(page);
    }
    for (size_t first = 0; first < pages.size(); first += ckpt::kMaxPagesPerFrame) {
      send_pages(
          std::span(pages).subspan(first, std::min<size_t>(ckpt::kMaxPagesPerFrame, pages.size() - first)));
    }
    if (epoch == 1) send_blob(ckpt::FrameType::base, machine_.base());
    std::vector<std::byte> state;
    machine_.save(&state);
    if (spoil_device) state.back() ^= std::byte{1};
    send_blob(ckpt::FrameType::device, state);
    commit_.device_bytes = state.size();
    commit_.frames = digest_.frames();
    commit_.digest = digest_.value();
  }
  void send_commit() { send(ckpt::FrameType::commit, commit_, epoch); }
  bool commit_epoch() {
    send_epoch_data();
    send_commit();
    if (!pump([&] { return acked == epoch; })) return false;
    remember();
    return true;
  }
  /// Call it when the epoch that was sent last is the one that the backup must come up with.
  void remember() {
    image.assign(machine_.memory().begin(), machine_.memory().end());
    machine_.save(&device);
    base = machine_.base();
  }
  void close() { link_->close({}); }
  ckpt::Commit& commit() { return commit_; }
  ckpt::Link& link() { return *link_; }

  bool heartbeats = true;
  bool spoil_device = false;  // what is sent next is whole, but no guest can be made of it
  uint64_t epoch = 0;         // sent last
  uint64_t acked = 0;
  std::map<ckpt::FrameType, int> received;
  ckpt::Refuse refuse;
  ckpt::NeedFiles needs;
  ckpt::Heartbeat heartbeat;
  std::vector<std::byte> image, device, base;  // at the last remembered epoch

 private:
  void send_pages(std::span<const uint64_t> pages) {
    ckpt::Bytes data, body;
    for (const uint64_t page : pages) {
      const auto content = machine_.memory().subspan(page * kPageSize, kPageSize);
      data.insert(data.end(), content.begin(), content.end());
    }
    ckpt::encode_pages(pages, data, &body);
    commit_.pages += pages.size();
    commit_.raw_bytes += data.size();
    append(ckpt::FrameType::pages, body);
  }
  void send_blob(ckpt::FrameType type, const std::vector<std::byte>& blob) {
    commit_.raw_bytes += blob.size();
    uint64_t offset = 0;
    do {
      ckpt::Bytes body;
      EXPECT_TRUE(ckpt::append_blob_part(blob, offset, &body, &offset).ok());
      append(type, body);
    } while (offset < blob.size());
  }
  void append(ckpt::FrameType type, const ckpt::Bytes& body) {
    uint64_t checksum = 0;
    if (link_->append(type, epoch, body, &checksum).ok()) digest_.add(checksum);
  }

  guest::Definition definition_;
  guest::sim::SimMachine machine_;
  std::unique_ptr<ckpt::Link> link_;
  ckpt::EpochDigest digest_;
  ckpt::Commit commit_;
};

}  // namespace remusd::backup
