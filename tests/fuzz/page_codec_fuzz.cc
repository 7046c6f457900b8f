// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// PAGES bodies and deltas. The first byte chooses: a body as a peer may send it, one delta by each processor
// path, or contents of pages that are encoded against a shadow and decoded again.
#include <array>
#include <cstdlib>

#include "ckpt/delta.h"
#include "ckpt/page_codec.h"
#include "tests/fuzz/target.h"

namespace remusd::fuzz {
namespace {

constexpr uint64_t kPages = 4;
constexpr size_t kBytes = kPages * kPageSize;
using Image = std::array<std::byte, kBytes>;

/// Some content that is not the same everywhere.
const Image& first_image() {
  static const Image image = [] {
    Image made{};
    for (size_t i = kPageSize; i < kBytes; ++i) made[i] = static_cast<std::byte>(i * i >> 5);
    return made;
  }();
  return image;
}

void run_body(View body, bool deltas) {
  uint32_t count = 77;
  if (const Status status = ckpt::check_pages(body, kPages, &count, deltas); !status.ok()) {
    REMUSD_ASSERT(count == 0, "nothing is counted of what is refused");
    return require_reason(status);
  }
  REMUSD_ASSERT(count >= 1 && count <= kPages, "pages are inside the memory, each once");
  static Image memory;
  memory = first_image();
  const Status verified = ckpt::verify_pages(body);
  const Status applied = ckpt::apply_pages(body, memory);
  REMUSD_ASSERT(verified.ok() == applied.ok(), "what is verified can be applied, and nothing else");
  std::array<bool, kPages> named{};
  for (uint32_t i = 0; i < count; ++i) {
    ckpt::PageEntry entry;
    std::memcpy(&entry, body.data() + 8 + i * sizeof entry, sizeof entry);
    named[entry.page] = true;
  }
  for (size_t page = 0; page < kPages; ++page) {
    if (named[page]) continue;
    const size_t at = page * kPageSize;
    REMUSD_ASSERT(same(View(memory).subspan(at, kPageSize), View(first_image()).subspan(at, kPageSize)),
                  "a page that is not named keeps its content");
  }
  if (!verified.ok()) return require_reason(verified);
  // Encoded anew, it makes the same image.
  std::vector<uint64_t> pages;
  Bytes data;
  for (uint64_t page = 0; page < kPages; ++page) {
    if (!named[page]) continue;
    pages.push_back(page);
    const auto content = std::span(memory).subspan(page * kPageSize, kPageSize);
    data.insert(data.end(), content.begin(), content.end());
  }
  Bytes again;
  REMUSD_ASSERT(ckpt::encode_pages(pages, data, &again).total() == count, "every page is in the body");
  REMUSD_ASSERT(ckpt::check_pages(again, kPages, &count).ok() && ckpt::verify_pages(again).ok(),
                "what we encode we accept");
  static Image other;
  other = first_image();
  REMUSD_ASSERT(ckpt::apply_pages(again, other).ok() && same(memory, other), "the image is the same");
}

void run_delta(View delta) {
  if (!ckpt::check_delta(delta)) return;
  REMUSD_ASSERT(delta.size() >= ckpt::kMinDeltaBytes && delta.size() <= ckpt::kMaxDeltaBytes, "bounds hold");
  const std::byte* old = first_image().data() + kPageSize;
  Bytes first;
  for (const ckpt::DeltaPath& path : ckpt::delta_paths()) {
    Bytes page(old, old + kPageSize);
    path.apply(delta.data(), page.data());
    if (first.empty()) first = page;
    REMUSD_ASSERT(same(page, first), "every path makes the same page");
    Bytes base(old, old + kPageSize), out(ckpt::kDeltaRoomBytes);
    const size_t size = path.encode(base.data(), page.data(), ckpt::kMaxDeltaBytes, out.data());
    REMUSD_ASSERT(same(base, page), "encoding brings the copy up to date");
    REMUSD_ASSERT(size <= delta.size(), "our deltas are the shortest");
    if (size == 0) continue;  // differences of zero
    REMUSD_ASSERT(ckpt::check_delta(View(out).first(size)), "what we encode we accept");
    Bytes applied(old, old + kPageSize);
    ckpt::apply_delta(out.data(), applied.data());
    REMUSD_ASSERT(same(applied, page), "the delta makes the page");
  }
}

/// Changes pages as the input says, sends them with a shadow of two pages, and compares the images.
void run_shadow(Input input) {
  auto shadow = ckpt::Shadow::make(kPages, 2 * kPageSize);
  REMUSD_ASSERT(shadow.ok(), "there is memory");
  static Image here, there;
  here = there = Image{};
  for (int round = 0; round < 8 && !input.empty(); ++round) {
    const uint8_t which = input.number();
    std::vector<uint64_t> pages;
    Bytes data, body;
    for (uint64_t page = 0; page < kPages; ++page) {
      if (((which >> page) & 1) == 0) continue;
      const auto content = std::span(here).subspan(page * kPageSize, kPageSize);
      if (((which >> (page + 4)) & 1) != 0) {
        const auto at = input.number<uint16_t>() % kPageSize;
        const View change = input.chunk();
        std::copy_n(change.begin(), std::min(change.size(), kPageSize - at), content.begin() + at);
      } else {
        std::fill(content.begin(), content.end(), static_cast<std::byte>(input.number()));
      }
      pages.push_back(page);
      data.insert(data.end(), content.begin(), content.end());
    }
    if (pages.empty()) continue;
    const ckpt::PageCounts counts = ckpt::encode_pages(pages, data, &body, &*shadow, round % 3 != 2);
    REMUSD_ASSERT(counts.total() + counts.same == pages.size(), "each page is sent or left out");
    REMUSD_ASSERT(body.empty() == (counts.total() == 0), "nothing to send, no body");
    if (body.empty()) continue;
    uint32_t count = 0;
    REMUSD_ASSERT(ckpt::check_pages(body, kPages, &count, true).ok() && count == counts.total() &&
                      ckpt::verify_pages(body).ok() && ckpt::apply_pages(body, there).ok(),
                  "what we encode we accept");
  }
  REMUSD_ASSERT(same(here, there), "the image over there is the one here");
}

void run(View bytes) {
  Input input(bytes);
  switch (input.number() % 4) {
    case 0:
      return run_body(input.rest(), false);
    case 1:
      return run_body(input.rest(), true);
    case 2:
      return run_delta(input.rest());
    default:
      return run_shadow(input);
  }
}

void seeds(Seeds* out) {
  const std::vector<uint64_t> pages{0, 1, 3};
  Bytes data(3 * kPageSize);
  for (size_t i = 0; i < kPageSize; ++i) data[kPageSize + i] = static_cast<std::byte>(i / 64);
  uint32_t state = 1;
  for (size_t i = 2 * kPageSize; i < data.size(); ++i)
    data[i] = static_cast<std::byte>((state = state * 1664525 + 1013904223) >> 24);
  for (const int mode : {0, 1}) {
    Bytes body{static_cast<std::byte>(mode)};
    ckpt::encode_pages(pages, data, &body);
    out->add(body);
    body.resize(1);
    ckpt::encode_pages(std::span(pages).first(2), std::span(data).first(2 * kPageSize), &body);
    out->add(body);
  }
  // Deltas: few words, and many that are worth packing.
  auto shadow = ckpt::Shadow::make(kPages, kPages * kPageSize);
  REMUSD_ASSERT(shadow.ok(), "there is memory");
  Bytes ignored;
  ckpt::encode_pages(pages, data, &ignored, &*shadow);
  data[100] ^= std::byte{1};
  for (size_t i = 0; i < kPageSize / 3; i += 8) data[kPageSize + i] ^= std::byte{0x55};
  Bytes body{std::byte{1}};
  ckpt::encode_pages(std::span(pages).first(2), std::span(data).first(2 * kPageSize), &body, &*shadow);
  out->add(body);
  Bytes base(kPageSize), delta(1 + ckpt::kDeltaRoomBytes);
  delta[0] = std::byte{2};
  delta.resize(1 + ckpt::encode_delta(base.data(), data.data() + kPageSize, kPageSize, delta.data() + 1));
  out->add(delta);
  Bytes rounds{std::byte{3}, std::byte{0x0f}, std::byte{1},   std::byte{2},
               std::byte{3}, std::byte{0},    std::byte{0x33}};
  put_number(uint16_t{40}, &rounds);
  put_chunk(Bytes(10, std::byte{9}), &rounds);
  out->add(rounds);
}

REMUSD_FUZZ_TARGET(page_codec, run, seeds);

}  // namespace
}  // namespace remusd::fuzz
