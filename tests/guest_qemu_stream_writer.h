// Copyright the remusd authors. SPDX-License-Identifier: Apache-2.0
//
// Writes QEMU's migration stream by hand: what a test, or a fuzz target's seed, says in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace remusd::guest::qemu {

class StreamWriter {
 public:
  StreamWriter& number(uint64_t value, size_t size) {
    for (size_t i = size; i-- > 0;) bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
    return *this;
  }
  StreamWriter& u8(uint64_t v) { return number(v, 1); }
  StreamWriter& be32(uint64_t v) { return number(v, 4); }
  StreamWriter& be64(uint64_t v) { return number(v, 8); }
  StreamWriter& text(std::string_view t) {
    for (const char c : t) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  StreamWriter& name(std::string_view t) { return u8(t.size()).text(t); }
  StreamWriter& header() { return be32(0x5145564d).be32(3); }
  StreamWriter& footer() { return u8(0x7e).be32(2); }
  /// The list of blocks: the guest's memory, which is shared, and a ROM.
  StreamWriter& ram_start(std::string_view section = "ram", uint64_t version = 4) {
    u8(1).be32(2).name(section).be32(0).be32(version);
    be64((0x400000 + 0x2000) | 0x04);
    name("ram0").be64(0x400000).be64(0);
    name("pc.bios").be64(0x2000).be64(0xfffe0000);
    return be64(0x10).footer();
  }
  StreamWriter& page(uint64_t offset, std::string_view block) {
    be64(offset | 0x08).name(block);
    return text(std::string(4096, 'p'));
  }
  /// Of the block that was named last.
  StreamWriter& zero(uint64_t offset) { return be64(offset | 0x02 | 0x20).u8(0); }
  StreamWriter& section(uint8_t type) { return u8(type).be32(2); }
  std::vector<std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace remusd::guest::qemu
