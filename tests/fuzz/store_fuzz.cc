// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// The backup's store, with a memory of four pages and a tiny limit, beside a model that keeps each epoch's
// frames and applies them when it is committed. An input is a list of steps; bodies come as a peer may send
// them or from the real encoders.
#include <array>

#include "backup/store.h"
#include "ckpt/blob_delta.h"
#include "ckpt/page_codec.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

using ckpt::FrameType;

constexpr uint64_t kPages = 4;
constexpr size_t kBytes = kPages * kPageSize;
constexpr size_t kLimitBytes = 3 * kPageSize;
constexpr int kMostSteps = 64;
using Image = std::array<std::byte, kBytes>;

enum Step : uint8_t {
  kPagesAsTheyAre,
  kDeviceAsItIs,
  kBaseAsItIs,
  kRightCommit,
  kCommitAsItIs,
  kPagesEncoded,
  kDeviceEncoded,
  kApplySlice,
  kWrongEpoch,
  kSteps
};

Image& image() {
  static Image memory;
  return memory;
}

class Session {
 public:
  explicit Session(bool deltas) : deltas_(deltas), store_(fresh(), kLimitBytes, deltas) {}

  void run(Input input) {
    for (int i = 0; i < kMostSteps && !input.empty() && ok_; ++i) {
      one(static_cast<Step>(input.number() % kSteps), &input);
      REMUSD_ASSERT(store_.staged_bytes() <= 2 * kLimitBytes, "staging is bounded");
      REMUSD_ASSERT(store_.applied() <= store_.staged() && store_.staged() == epoch_ - 1,
                    "an epoch is staged when it is committed, and applied after that");
    }
    if (epoch_ == 1) return;
    store_.drop_open();
    store_.finish();
    REMUSD_ASSERT(store_.applied() == epoch_ - 1 && store_.staged_bytes() == 0,
                  "all that was staged is applied");
    REMUSD_ASSERT(same(image(), committed_), "the image is the last committed epoch's and nothing else");
    REMUSD_ASSERT(same(store_.device(), device_) && same(store_.base(), base_),
                  "device state and base are that epoch's");
  }

 private:
  static std::span<std::byte> fresh() {
    image().fill(std::byte{0});
    return image();
  }

  void one(Step step, Input* input) {
    switch (step) {
      case kPagesAsTheyAre:
        return add(FrameType::pages, input->chunk());
      case kDeviceAsItIs:
        return add(FrameType::device, input->chunk());
      case kBaseAsItIs:
        return add(FrameType::base, input->chunk());
      case kRightCommit:
        return commit(right_commit());
      case kCommitAsItIs:
        return commit(input->chunk());
      case kPagesEncoded:
        return add(FrameType::pages, encoded_pages(input));
      case kDeviceEncoded:
        return add(FrameType::device, encoded_device(input));
      case kApplySlice:
        return store_.apply_slice(1);
      default: {
        ckpt::FrameView frame = view(FrameType::pages, {});
        frame.header.epoch += 1 + input->number();
        const Status status = store_.add(frame);
        REMUSD_ASSERT(!status.ok(), "an epoch out of order is refused");
        return fail(status);
      }
    }
  }

  ckpt::FrameView view(FrameType type, View body) {
    ckpt::FrameView frame;
    frame.header.type = static_cast<uint16_t>(type);
    frame.header.epoch = epoch_;
    frame.header.checksum = ++checksum_;
    frame.body = body;
    return frame;
  }

  void fail(const Status& status) {
    require_reason(status);
    ok_ = false;
  }

  void add(FrameType type, View body) {
    if (body.empty() && type == FrameType::pages && body.data() == nullptr) return;
    const ckpt::FrameView frame = view(type, body);
    if (const Status status = store_.add(frame); !status.ok()) return fail(status);
    digest_.add(frame.header.checksum);
    if (type == FrameType::pages) {
      uint32_t count = 0;
      REMUSD_ASSERT(ckpt::check_pages(body, kPages, &count, deltas_).ok(), "what is taken is well formed");
      sums_.pages += count;
      pages_.emplace_back(body.begin(), body.end());
      return;
    }
    ckpt::BlobPart part;
    REMUSD_ASSERT(ckpt::decode(body, &part).ok(), "what is taken is well formed");
    ckpt::BlobAssembler& blob = type == FrameType::device ? open_device_ : open_base_;
    const View before = type == FrameType::device && deltas_ ? View(device_) : View();
    REMUSD_ASSERT(blob.add(part, before).ok(), "parts that are taken follow each other");
    base_started_ = base_started_ || type == FrameType::base;
  }

  Bytes right_commit() {
    ckpt::Commit commit = sums_;
    commit.frames = digest_.frames();
    commit.digest = digest_.value();
    commit.device_bytes = open_device_.blob().size();
    commit.raw_bytes = commit.pages * kPageSize + commit.device_bytes + open_base_.blob().size();
    Bytes body;
    ckpt::encode(commit, &body);
    return body;
  }

  void commit(const View body) {
    ckpt::Commit commit;
    const Bytes right = right_commit();
    if (const Status status = store_.commit(view(FrameType::commit, body), &commit); !status.ok()) {
      REMUSD_ASSERT(
          !same(body, right) || !open_device_.complete() || (base_started_ && !open_base_.complete()),
          "an epoch that is whole and agrees is taken");
      return fail(status);
    }
    REMUSD_ASSERT(same(body, right), "only what agrees in every sum is committed");
    for (const Bytes& frame : pages_) {
      REMUSD_ASSERT(ckpt::apply_pages(frame, committed_).ok(), "what is committed can be applied");
    }
    pages_.clear();
    device_ = open_device_.take();
    if (base_started_) base_ = open_base_.take();
    open_base_.reset();
    base_started_ = false;
    digest_.reset();
    sums_ = {};
    ++epoch_;
  }

  /// What an honest primary sends: pages of its own image, changed as the input says.
  View encoded_pages(Input* input) {
    const uint8_t which = input->number();
    std::vector<uint64_t> pages;
    Bytes data;
    for (uint64_t page = 0; page < kPages; ++page) {
      if (((which >> page) & 1) == 0) continue;
      const auto content = std::span(primary_).subspan(page * kPageSize, kPageSize);
      const size_t at = input->number<uint16_t>() % kPageSize;
      const View change = input->take(which >> 4);
      std::copy_n(change.begin(), std::min(change.size(), kPageSize - at), content.begin() + at);
      pages.push_back(page);
      data.insert(data.end(), content.begin(), content.end());
    }
    body_.clear();
    if (deltas_ && !shadow_) {
      auto made = ckpt::Shadow::make(kPages, kPages * kPageSize);
      REMUSD_ASSERT(made.ok(), "there is memory");
      shadow_.emplace(*std::move(made));
    }
    if (!pages.empty()) ckpt::encode_pages(pages, data, &body_, shadow_ ? &*shadow_ : nullptr);
    return body_.empty() ? View() : View(body_);
  }

  View encoded_device(Input* input) {
    const size_t size = input->number<uint16_t>() % 5000;
    const View start = input->chunk();
    Bytes state(size, std::byte{1});
    std::copy_n(start.begin(), std::min(start.size(), size), state.begin());
    uint64_t next = 0;
    body_.clear();
    (void)history_.append_part(state, 0, &body_, &next);
    return body_;
  }

  const bool deltas_;
  backup::Store store_;
  bool ok_ = true;
  uint64_t epoch_ = 1;
  uint64_t checksum_ = 0;
  // The model.
  Image committed_{};
  Bytes device_, base_;
  std::vector<Bytes> pages_;  // of the open epoch
  ckpt::BlobAssembler open_device_, open_base_;
  bool base_started_ = false;
  ckpt::EpochDigest digest_;
  ckpt::Commit sums_;
  // The honest primary.
  Image primary_{};
  std::optional<ckpt::Shadow> shadow_;
  ckpt::BlobHistory history_;
  Bytes body_;
};

void run(View bytes) {
  Input input(bytes);
  Session(input.number() % 2 == 1).run(input);
}

void put_device(uint16_t size, Bytes* out) {
  put_number(uint8_t{kDeviceEncoded}, out);
  put_number(size, out);
  put_chunk(Bytes(5, std::byte{9}), out);
}

void put_pages(uint8_t which, Bytes* out) {
  put_number(uint8_t{kPagesEncoded}, out);
  put_number(which, out);
  for (int page = 0; page < 4; ++page) {
    if (((which >> page) & 1) == 0) continue;
    put_number(uint16_t{100}, out);
    out->insert(out->end(), which >> 4, std::byte{0x31});
  }
}

void seeds(Seeds* out) {
  for (const int deltas : {0, 1}) {
    Bytes steps{static_cast<std::byte>(deltas)};
    for (const int which : {0x3f, 0x26, 0x53, 0x11}) {
      put_pages(static_cast<uint8_t>(which), &steps);
      put_device(100, &steps);
      put_number(uint8_t{kRightCommit}, &steps);
      out->add(steps);
    }
    put_pages(0x4f, &steps);
    out->add(steps);  // half an epoch
    // Bodies as they are, and a base.
    Bytes body;
    uint64_t next = 0;
    steps.resize(1);
    (void)ckpt::append_blob_part(Bytes(50, std::byte{2}), 0, &body, &next);
    for (const Step step : {kDeviceAsItIs, kBaseAsItIs}) {
      put_number(static_cast<uint8_t>(step), &steps);
      put_chunk(body, &steps);
    }
    const std::array<uint64_t, 2> pages{1, 2};
    body.clear();
    ckpt::encode_pages(pages, Bytes(2 * kPageSize, std::byte{6}), &body);
    put_number(uint8_t{kPagesAsTheyAre}, &steps);
    put_chunk(body, &steps);
    put_number(uint8_t{kRightCommit}, &steps);
    out->add(steps);
  }
}

REMUSD_FUZZ_TARGET(store, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
