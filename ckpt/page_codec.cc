// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// A PAGES body: u32 count, u32 0, `count` entries of 16 bytes, then the payloads in the same order.
#include "ckpt/page_codec.h"

#include <lz4.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "ckpt/wire.h"

namespace remusd::ckpt {
namespace {

constexpr size_t kCountBytes = 8;

Status refuse(const std::string& why) {
  return {Code::corrupt, "PAGES record: " + why};
}

/// The C library compares with the widest loads that this processor has, and stops at the first difference.
bool is_zero(const std::byte* page) {
  return page[0] == std::byte{0} && std::memcmp(page, page + 1, kPageSize - 1) == 0;
}

PageEntry entry_at(View body, size_t index) {
  PageEntry entry;
  std::memcpy(&entry, body.data() + kCountBytes + index * sizeof entry, sizeof entry);
  return entry;
}

uint32_t count_of(View body) {
  uint32_t count = 0;
  if (body.size() >= kCountBytes) std::memcpy(&count, body.data(), sizeof count);
  return count;
}

bool decompress_page(const std::byte* payload, uint32_t payload_bytes, std::byte* page) {
  return LZ4_decompress_safe(reinterpret_cast<const char*>(payload), reinterpret_cast<char*>(page),
                             static_cast<int>(payload_bytes), kPageSize) == static_cast<int>(kPageSize);
}

/// True when count, table and payloads lie inside the body: what the decoders need so as not to read past it.
bool fits(View body, uint32_t count) {
  if (count == 0 || count > kMaxPagesPerFrame) return false;
  if (body.size() < kCountBytes + count * sizeof(PageEntry)) return false;
  uint64_t payload_bytes = 0;
  for (uint32_t i = 0; i < count; ++i) payload_bytes += entry_at(body, i).payload_bytes;
  return payload_bytes == body.size() - kCountBytes - count * sizeof(PageEntry);
}

}  // namespace

PageCounts encode_pages(std::span<const uint64_t> pages, std::span<const std::byte> data, Bytes* out) {
  REMUSD_ASSERT(!pages.empty() && pages.size() <= kMaxPagesPerFrame, "the caller cuts page sets into frames");
  REMUSD_ASSERT(data.size() == pages.size() * kPageSize, "one page of data for each number");
  const size_t start = out->size();
  const size_t table = start + kCountBytes;
  const size_t worst = table + pages.size() * (sizeof(PageEntry) + kPageSize);
  if (out->capacity() < worst) out->reserve(std::max(worst, 2 * out->capacity()));
  put(static_cast<uint32_t>(pages.size()), out);
  put(uint32_t{0}, out);
  out->resize(table + pages.size() * sizeof(PageEntry));

  PageCounts counts;
  std::array<std::byte, kPageSize> compressed;
  for (size_t i = 0; i < pages.size(); ++i) {
    const std::byte* page = data.data() + i * kPageSize;
    PageEntry entry;
    entry.page = pages[i];
    if (is_zero(page)) {
      entry.encoding = static_cast<uint8_t>(PageEncoding::zero);
      ++counts.zero;
    } else if (const int size = LZ4_compress_default(
                   reinterpret_cast<const char*>(page), reinterpret_cast<char*>(compressed.data()),
                   static_cast<int>(kPageSize), static_cast<int>(kPageSize - 1));
               size > 0) {
      entry.encoding = static_cast<uint8_t>(PageEncoding::lz4);
      entry.payload_bytes = static_cast<uint32_t>(size);
      put_bytes(std::span(compressed).first(size), out);
      ++counts.lz4;
    } else {
      entry.encoding = static_cast<uint8_t>(PageEncoding::raw);
      entry.payload_bytes = kPageSize;
      put_bytes({page, kPageSize}, out);
      ++counts.raw;
    }
    std::memcpy(out->data() + table + i * sizeof entry, &entry, sizeof entry);
  }
  return counts;
}

Status check_pages(View body, uint64_t memory_pages, uint32_t* pages) {
  *pages = 0;
  if (body.size() < kCountBytes) return refuse("count is cut off");
  const uint32_t count = count_of(body);
  if (count == 0 || count > kMaxPagesPerFrame)
    return refuse("count " + std::to_string(count) + " is not within 1 to " +
                  std::to_string(kMaxPagesPerFrame));
  uint32_t reserved = 0;
  std::memcpy(&reserved, body.data() + 4, sizeof reserved);
  if (reserved != 0) return refuse("the reserved field after count is not 0");
  if (body.size() < kCountBytes + count * sizeof(PageEntry)) return refuse("the page table is cut off");

  uint64_t payload_bytes = 0;
  uint64_t least = 0;  // the lowest number that the next page may have
  for (uint32_t i = 0; i < count; ++i) {
    const PageEntry entry = entry_at(body, i);
    const auto which = [&] { return "page " + std::to_string(entry.page); };
    if (entry.page < least) return refuse(which() + " is out of order");
    if (entry.page >= memory_pages)
      return refuse(which() + " lies outside the memory of " + std::to_string(memory_pages) + " pages");
    least = entry.page + 1;
    if (entry.reserved[0] != 0 || entry.reserved[1] != 0 || entry.reserved[2] != 0)
      return refuse(which() + " has reserved bytes that are not 0");
    bool sized = false;
    switch (static_cast<PageEncoding>(entry.encoding)) {
      case PageEncoding::zero:
        sized = entry.payload_bytes == 0;
        break;
      case PageEncoding::raw:
        sized = entry.payload_bytes == kPageSize;
        break;
      case PageEncoding::lz4:
        sized = entry.payload_bytes >= 1 && entry.payload_bytes < kPageSize;
        break;
      default:
        return refuse(which() + " has unknown encoding " + std::to_string(entry.encoding));
    }
    if (!sized)
      return refuse(which() + " has a payload of " + std::to_string(entry.payload_bytes) + " bytes");
    payload_bytes += entry.payload_bytes;
  }
  const size_t left = body.size() - kCountBytes - count * sizeof(PageEntry);
  if (payload_bytes != left)
    return refuse("payloads of " + std::to_string(payload_bytes) + " bytes in a body with " +
                  std::to_string(left));
  *pages = count;
  return {};
}

Status apply_pages(View body, std::span<std::byte> memory) {
  const uint32_t count = count_of(body);
  REMUSD_ASSERT(fits(body, count), "check_pages accepted this body");
  const std::byte* payload = body.data() + kCountBytes + count * sizeof(PageEntry);
  for (uint32_t i = 0; i < count; ++i) {
    const PageEntry entry = entry_at(body, i);
    REMUSD_ASSERT(entry.page < memory.size() / kPageSize, "check_pages accepted this body for this memory");
    std::byte* page = memory.data() + entry.page * kPageSize;
    switch (static_cast<PageEncoding>(entry.encoding)) {
      case PageEncoding::zero:
        std::memset(page, 0, kPageSize);
        break;
      case PageEncoding::raw:
        REMUSD_ASSERT(entry.payload_bytes == kPageSize, "check_pages accepted this body");
        std::memcpy(page, payload, kPageSize);
        break;
      case PageEncoding::lz4:
        if (!decompress_page(payload, entry.payload_bytes, page))
          return refuse("page " + std::to_string(entry.page) + " does not decompress to one page");
        break;
    }
    payload += entry.payload_bytes;
  }
  return {};
}

Status verify_pages(View body) {
  const uint32_t count = count_of(body);
  REMUSD_ASSERT(fits(body, count), "check_pages accepted this body");
  std::array<std::byte, kPageSize> scratch;
  const std::byte* payload = body.data() + kCountBytes + count * sizeof(PageEntry);
  for (uint32_t i = 0; i < count; ++i) {
    const PageEntry entry = entry_at(body, i);
    if (static_cast<PageEncoding>(entry.encoding) == PageEncoding::lz4 &&
        !decompress_page(payload, entry.payload_bytes, scratch.data()))
      return refuse("page " + std::to_string(entry.page) + " does not decompress to one page");
    payload += entry.payload_bytes;
  }
  return {};
}

}  // namespace remusd::ckpt
